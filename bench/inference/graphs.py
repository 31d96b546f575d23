"""The models under load, made here so that everybody has the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 9
SMALL = (32, 64, 64, 2)
# 11 million weights: 2.2 ms a row on one core when it runs alone, an eighth of it in a large batch
HEAVY = (512, 3_072, 3_072, 2)
TOKEN_FLOATS = 4


def perceptron(sizes: Sequence[int], seed: int = 0) -> bytes:
    """Return a multi-layer perceptron `features` [N, sizes[0]] -> `logits` [N, sizes[-1]]."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "features"
    layers = list(itertools.pairwise(sizes))
    for place, (width, height) in enumerate(layers):
        scale = np.float32(1 / np.sqrt(width))
        matrix = rng.standard_normal((width, height), np.float32) * scale
        weights += [
            numpy_helper.from_array(matrix, f"w{place}"),
            numpy_helper.from_array(np.zeros(height, np.float32), f"b{place}"),
        ]
        is_last = place == len(layers) - 1
        given = "logits" if is_last else f"h{place}"
        nodes.append(helper.make_node("Gemm", [last, f"w{place}", f"b{place}"], [given]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [given], [f"r{place}"]))
        last = f"r{place}"
    return _model(nodes, ("features", sizes[0]), ("logits", sizes[-1]), weights)


def copy() -> bytes:
    """Return a graph that gives back what it is given: who gets another's row sees it."""
    node = helper.make_node("Identity", ["features"], ["same"])
    return _model([node], ("features", TOKEN_FLOATS), ("same", TOKEN_FLOATS), [])


def _model(
    nodes: list, taken: tuple[str, int], given: tuple[str, int], weights: list[TensorProto]
) -> bytes:
    def value(name: str, width: int):  # noqa: ANN202 - a message of onnx
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])

    graph = helper.make_graph(nodes, "bench", [value(*taken)], [value(*given)], weights)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
