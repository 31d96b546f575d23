"""torch as the reference: the same weights say the same in torch and in every engine here."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.backends.torch_reference import TorchReference
from volary_kit.errors import InvalidArgument

from . import graphs

WIDTHS = (6, 16, 8, 1)


def weights(seed: int = 5) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    arrays = {
        "mean": random.normal(size=WIDTHS[0]).astype(np.float32) * 1_000,
        "scale": random.uniform(1, 500, size=WIDTHS[0]).astype(np.float32),
    }
    for index in range(len(WIDTHS) - 1):
        shape = (WIDTHS[index + 1], WIDTHS[index])
        arrays[f"layers.{3 * index}.weight"] = random.normal(size=shape).astype(np.float32)
        arrays[f"layers.{3 * index}.bias"] = random.normal(size=shape[0]).astype(np.float32)
    return arrays


def file_of(arrays: dict[str, np.ndarray], **changed: object) -> bytes:
    header: dict[str, dict[str, object]] = {}
    body = b""
    for name, array in arrays.items():
        data = array.tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        } | (changed if name == "mean" else {})
        body += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def graph(arrays: dict[str, np.ndarray]) -> bytes:
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "low", "high"], ["x0"]),
    ]
    for layer in range(len(WIDTHS) - 1):
        named = [f"layers.{3 * layer}.weight", f"layers.{3 * layer}.bias"]
        nodes.append(helper.make_node("Gemm", [f"x{layer}", *named], [f"y{layer}"], transB=1))
        is_last = layer == len(WIDTHS) - 2
        kind, output = ("Sigmoid", "probability") if is_last else ("Relu", f"x{layer + 1}")
        nodes.append(helper.make_node(kind, [f"y{layer}"], [output]))
    bounds = {"low": np.array(-8, np.float32), "high": np.array(8, np.float32)}
    constants = [numpy_helper.from_array(each, name) for name, each in (arrays | bounds).items()]
    inputs = [graphs.value("features", [None, WIDTHS[0]])]
    outputs = [graphs.value("probability", [None, 1], TensorProto.FLOAT)]
    return graphs.model_of(nodes, inputs, outputs, constants).SerializeToString()


@pytest.mark.parametrize("seed", range(4))
def test_the_runtime_says_what_torch_says_on_any_batch(seed: int) -> None:
    arrays = weights(seed)
    reference, ours = TorchReference(file_of(arrays)), OnnxGraph(graph(arrays))
    assert reference.signature == ours.signature
    random = np.random.default_rng(seed)
    for rows in (1, 2, 7, 64):
        features = random.normal(scale=2_000, size=(rows, WIDTHS[0])).astype(np.float32)
        features[0, 0] = 1e9  # clamped
        expected = reference.run({"features": features})["probability"]
        found = ours.run({"features": features})["probability"]
        assert expected.shape == (rows, 1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in weights().items() if key != name}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (pickle.dumps({"mean": [1.0]}), "header"),
        (b"", "no header"),
        (file_of(weights())[:-1], "shape is not that of its bytes"),
        (file_of(weights(), dtype="F64"), "32-bit"),
        (file_of(weights(), shape=[2]), "shape is not that of its bytes"),
        (file_of(weights(), data_offsets=[-24, 0]), "shape is not that of its bytes"),
        (file_of(weights() | {"mean": np.full(6, np.nan, np.float32)}), "not a number"),
        (file_of(weights() | {"../up": np.ones(1, np.float32)}), "no part of the network"),
        (file_of(without("layers.3.bias")), "missing"),
        (file_of(without("scale")), "missing"),
        (file_of(weights() | {"layers.3.weight": np.ones((8, 9), np.float32)}), "fit together"),
        (file_of(weights() | {"scale": np.ones(5, np.float32)}), "scaling"),
    ],
)
def test_anything_but_the_networks_plain_arrays_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text) as caught:
        TorchReference(data)
    assert caught.value.reason == "WEIGHTS_REFUSED"
