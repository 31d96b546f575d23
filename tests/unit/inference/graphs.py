"""Small ONNX graphs, made here, whose outputs are known by arithmetic."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 17


def model_of(
    nodes: list[NodeProto],
    inputs: list,
    outputs: list,
    initializers: list[TensorProto] | None = None,
    domain: str = "",
) -> ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers or [])
    opsets = [helper.make_opsetid("", OPSET)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def value(name: str, shape: list[int | None], kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def sigmoid_sum(width: int = 3, bias: float = 0.0) -> bytes:
    """`probability` = sigmoid(sum of `features` + bias), one a row."""
    weights = numpy_helper.from_array(np.ones((width, 1), np.float32), "w")
    offset = numpy_helper.from_array(np.array([bias], np.float32), "b")
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["t"]),
        helper.make_node("Sigmoid", ["t"], ["probability"]),
    ]
    inputs, outputs = [value("features", [None, width])], [value("probability", [None, 1])]
    return model_of(nodes, inputs, outputs, [weights, offset]).SerializeToString()


def slow_sum(width: int = 3, bias: float = 0.0, rounds: int = 40_000) -> bytes:
    """Take some 2 us of a processor a round, for however many rows, before it is a probability."""
    weights = numpy_helper.from_array(np.ones((width, 1), np.float32), "w")
    offset = numpy_helper.from_array(np.array([bias], np.float32), "b")
    number = numpy_helper.from_array(np.array(rounds, np.int64), "rounds")
    true = numpy_helper.from_array(np.array(True), "true")
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Tanh", ["v"], ["x"])],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("v", [None, 1]),
        ],
        [value("go_on", [], TensorProto.BOOL), value("x", [None, 1])],
    )
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["t"]),
        helper.make_node("Loop", ["rounds", "true", "t"], ["u"], body=body),
        helper.make_node("Sigmoid", ["u"], ["probability"]),
    ]
    inputs, outputs = [value("features", [None, width])], [value("probability", [None, 1])]
    initializers = [weights, offset, number, true]
    return model_of(nodes, inputs, outputs, initializers).SerializeToString()


def identity(kind: int, shape: list[int | None]) -> bytes:
    node = helper.make_node("Identity", ["x"], ["y"])
    return model_of(
        [node], [value("x", shape, kind)], [value("y", shape, kind)]
    ).SerializeToString()


def square_root() -> bytes:
    """NaN for a negative number, though its input is finite."""
    node = helper.make_node("Sqrt", ["x"], ["y"])
    return model_of([node], [value("x", [None, 1])], [value("y", [None, 1])]).SerializeToString()


def gather() -> bytes:
    """Fails at run time on an index beyond 2: a poisoned row."""
    table = numpy_helper.from_array(np.array([10.0, 20.0, 30.0], np.float32), "table")
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    inputs = [value("x", [None], TensorProto.INT64)]
    return model_of([node], inputs, [value("y", [None])], [table]).SerializeToString()


def endless() -> bytes:
    """A loop of 2^62 rounds."""
    rounds = numpy_helper.from_array(np.array(1 << 62, np.int64), "rounds")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "v"], ["w"]),
        ],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("v", [1]),
        ],
        [value("go_on", [], TensorProto.BOOL), value("w", [1])],
    )
    true = numpy_helper.from_array(np.array(True), "true")
    nodes = [helper.make_node("Loop", ["rounds", "true", "x"], ["y"], body=body)]
    inputs, outputs = [value("x", [1])], [value("y", [1])]
    return model_of(nodes, inputs, outputs, [rounds, true]).SerializeToString()
