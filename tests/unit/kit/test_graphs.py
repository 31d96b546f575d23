"""Everything that an ONNX artifact may not be, one broken file at a time."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from volary_kit.errors import InvalidArgument
from volary_kit.graphs import MAX_NESTING, check_graph


def value(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int | None, ...] = (None, 2)):
    return helper.make_tensor_value_info(name, kind, list(shape))


def graph_of(*nodes: NodeProto, weight: str = "w") -> GraphProto:
    constant = numpy_helper.from_array(np.eye(2, dtype=np.float32), weight)
    return helper.make_graph(list(nodes), "graph", [value("x")], [value("y")], [constant])


def model_of(graph: GraphProto, *domains: str) -> ModelProto:
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(each, 1) for each in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def plain() -> ModelProto:
    return model_of(graph_of(helper.make_node("MatMul", ["x", "w"], ["y"])))


def outside(tensor: TensorProto) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


def external_initializer() -> ModelProto:
    model = plain()
    outside(model.graph.initializer[0])
    return model


def external_without_location() -> ModelProto:
    """The location flag alone is missing: the entries still name a file."""
    model = plain()
    model.graph.initializer[0].external_data.add(key="location", value="secret")
    return model


def external_in_a_subgraph() -> ModelProto:
    constant = outside(numpy_helper.from_array(np.ones(2, np.float32), "t"))
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value=constant)], "inner", [], [value("z")]
    )
    return branching(inner)


def external_in_a_sparse_tensor() -> ModelProto:
    model = plain()
    sparse = model.graph.sparse_initializer.add(dims=[2, 2])
    sparse.values.CopyFrom(outside(numpy_helper.from_array(np.ones(1, np.float32), "s")))
    return model


def external_in_a_list_of_tensors() -> ModelProto:
    model = plain()
    attribute = model.graph.node[0].attribute.add(name="ts")
    attribute.tensors.append(outside(numpy_helper.from_array(np.ones(1, np.float32), "t")))
    return model


def branching(inner: GraphProto) -> ModelProto:
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([choice], "graph", [value("c", TensorProto.BOOL, (1,))], [value("y")])
    return model_of(graph)


def custom_operator() -> ModelProto:
    return model_of(graph_of(helper.make_node("Evil", ["x"], ["y"], domain="evil.ops")), "evil.ops")


def undeclared_custom_operator() -> ModelProto:
    return model_of(graph_of(helper.make_node("Evil", ["x"], ["y"], domain="evil.ops")))


def custom_operator_in_a_subgraph() -> ModelProto:
    evil = helper.make_node("Evil", [], ["z"], domain="evil.ops")
    return branching(helper.make_graph([evil], "inner", [], [value("z")]))


def contributed_operator_off_the_list() -> ModelProto:
    node = helper.make_node("Attention", ["x"], ["y"], domain="com.microsoft")
    return model_of(graph_of(node), "com.microsoft")


def function_of_its_own() -> ModelProto:
    model = plain()
    node = helper.make_node("Identity", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [node], opsets))
    return model


def training_graph() -> ModelProto:
    model = plain()
    model.training_info.add().algorithm.name = "sgd"
    return model


def nested_too_deep() -> ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value_float=1.0)], "inner", [], [value("z")]
    )
    for _ in range(MAX_NESTING + 1):
        choice = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([choice], "inner", [], [value("z")])
    return branching(inner)


def initializer_twice() -> ModelProto:
    model = plain()
    model.graph.initializer.append(model.graph.initializer[0])
    return model


def input_twice() -> ModelProto:
    model = plain()
    model.graph.input.append(value("x"))
    return model


def output_twice() -> ModelProto:
    model = plain()
    model.graph.output.append(value("y"))
    return model


def made_twice() -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["x"], ["y"])]
    return model_of(graph_of(*nodes))


def made_over_an_input() -> ModelProto:
    return model_of(graph_of(helper.make_node("Relu", ["w"], ["x"])))


def shape_beyond_the_file() -> ModelProto:
    model = plain()
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    return model


def negative_shape() -> ModelProto:
    model = plain()
    model.graph.initializer[0].dims[:] = [-1, -4]
    return model


def no_output() -> ModelProto:
    model = plain()
    del model.graph.output[:]
    return model


def nameless_input() -> ModelProto:
    model = plain()
    model.graph.input.append(value(""))
    return model


def not_a_tensor() -> ModelProto:
    model = plain()
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    model.graph.input.append(helper.make_value_info("s", helper.make_sequence_type_proto(element)))
    return model


def unknown_operator() -> ModelProto:
    return model_of(graph_of(helper.make_node("NoSuchThing", ["x"], ["y"])))


def loose_end() -> ModelProto:
    return model_of(graph_of(helper.make_node("MatMul", ["x", "nothing"], ["y"])))


REFUSED: dict[Callable[[], ModelProto], str] = {
    external_initializer: "outside of the file",
    external_without_location: "outside of the file",
    external_in_a_subgraph: "outside of the file",
    external_in_a_sparse_tensor: "outside of the file",
    external_in_a_list_of_tensors: "outside of the file",
    custom_operator: "custom operators",
    undeclared_custom_operator: "custom operators",
    custom_operator_in_a_subgraph: "custom operators",
    contributed_operator_off_the_list: "custom operators",
    function_of_its_own: "functions or training graphs",
    training_graph: "functions or training graphs",
    nested_too_deep: "nests graphs",
    initializer_twice: "'w' is given twice",
    input_twice: "'x' is given twice",
    output_twice: "'y' is given twice",
    made_twice: "'y' is given twice",
    made_over_an_input: "'x' is given twice",
    shape_beyond_the_file: "shape is not that of its data",
    negative_shape: "shape is not that of its data",
    no_output: "it has no output",
    nameless_input: "no name",
    not_a_tensor: "is not a tensor",
    unknown_operator: "not valid",
    loose_end: "not valid",
}


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check_graph(data, **limits)
    assert caught.value.reason == "ARTIFACT_REFUSED"
    return caught.value.message


@pytest.mark.parametrize("broken", REFUSED, ids=lambda broken: broken.__name__)
def test_a_graph_that_is_more_or_less_than_a_plain_one_is_refused(
    broken: Callable[[], ModelProto],
) -> None:
    assert REFUSED[broken] in refusal(broken().SerializeToString())


def archive() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("../model.onnx", b"x")
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 64, pickle.dumps({"weights": [1.0]}), archive()],
    ids=["nothing", "noise", "pickle", "archive"],
)
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    refusal(data)


def test_too_many_bytes_are_refused_before_they_are_parsed() -> None:
    assert "more than 10 bytes" in refusal(b"\xff" * 11, max_bytes=10)


def test_a_plain_graph_and_what_quantisation_writes_are_accepted() -> None:
    assert check_graph(plain().SerializeToString()).graph.name == "graph"
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    model = model_of(
        graph_of(
            helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], domain="com.microsoft"),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], domain="com.microsoft"),
        ),
        "com.microsoft",
    )
    model.graph.initializer.append(scale)
    assert len(check_graph(model.SerializeToString()).graph.node) == 2


def test_an_input_may_have_a_default_of_its_own_name() -> None:
    model = plain()
    model.graph.input.append(value("w", shape=(2, 2)))
    check_graph(model.SerializeToString())


def test_the_check_costs_nothing_before_it_is_used() -> None:
    code = "import sys, volary_kit.graphs; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
