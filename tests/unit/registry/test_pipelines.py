"""Pipelines: what they compose to, and what is refused before anything is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from volary_kit.artifacts import digest_of
from volary_kit.errors import InvalidArgument
from volary_registry.domain.pipelines import Pipeline, Step, TensorSpec, Wire, compose, signature

OPSET = 18


def model(
    nodes: list[NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = OPSET,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


FLOAT, ROWS = TensorProto.FLOAT, "rows"


def scale(opset: int = OPSET) -> bytes:
    """`y` = (`x` - 1) / 2, two columns."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["t"]),
        helper.make_node("Div", ["t", "deviation"], ["y"]),
    ]
    constants = {
        "mean": np.array([1, 1], np.float32),
        "deviation": np.array([2, 2], np.float32),
    }
    two: tuple[int, list[int | str]] = (FLOAT, [ROWS, 2])
    return model(nodes, {"x": two}, {"y": two}, constants, opset)


def linear() -> bytes:
    """`y` [rows, 1] = `x` [rows, 2] times (3, 5): the names of `scale` once more."""
    nodes = [helper.make_node("MatMul", ["x", "mean"], ["y"])]
    return model(
        nodes,
        {"x": (FLOAT, ["n", 2])},
        {"y": (FLOAT, ["n", 1])},
        {"mean": np.array([[3], [5]], np.float32)},
    )


def decide() -> bytes:
    """`label` = `score` > `limit`, by an If whose branches have names of their own."""
    branch = helper.make_graph(
        [helper.make_node("Greater", ["score", "limit"], ["seen"])],
        "yes",
        [],
        [helper.make_tensor_value_info("seen", TensorProto.BOOL, [ROWS, 1])],
    )
    other = helper.make_graph(
        [helper.make_node("Less", ["score", "limit"], ["seen"])],
        "no",
        [],
        [helper.make_tensor_value_info("seen", TensorProto.BOOL, [ROWS, 1])],
    )
    nodes = [
        helper.make_node("If", ["is_on"], ["label"], then_branch=branch, else_branch=other),
    ]
    one: tuple[int, list[int | str]] = (FLOAT, [ROWS, 1])
    return model(
        nodes,
        {"score": one, "limit": one},
        {"label": (TensorProto.BOOL, [ROWS, 1])},
        {"is_on": np.array(True)},
    )


GRAPHS = {digest_of(data): data for data in (scale(), linear(), decide(), scale(opset=17))}


def step(name: str, data: bytes, *inputs: Wire) -> Step:
    return Step(name, digest_of(data), inputs)


SCALE = step("scale", scale(), Wire("x", "", "features"))
LINEAR = step("linear", linear(), Wire("x", "scale", "y"))
DECIDE = step("decide", decide(), Wire("score", "linear", "y"), Wire("limit", "", "limit"))
OUTPUTS = (Wire("probability", "linear", "y"), Wire("label", "decide", "label"))
WHOLE = Pipeline((DECIDE, LINEAR, SCALE), OUTPUTS)  # declared in any order


def run(data: bytes, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, feeds)]


def test_the_composed_graph_does_what_its_steps_do_one_after_another() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((17, 2), np.float32)
    limit = rng.standard_normal((17, 1), np.float32)
    [scaled] = run(scale(), x=features)
    [scored] = run(linear(), x=scaled)
    [label] = run(decide(), score=scored, limit=limit)
    data = compose(WHOLE, GRAPHS)
    found = run(data, features=features, limit=limit)
    assert found[0].tobytes() == scored.tobytes()
    assert found[1].tolist() == label.tolist()
    assert 0 < label.sum() < len(label)


def test_a_pipeline_has_one_signature_and_the_same_bytes_each_time() -> None:
    data = compose(WHOLE, GRAPHS)
    assert compose(WHOLE, GRAPHS) == data
    assert signature(data) == (
        [TensorSpec("limit", "FP32", (-1, 1)), TensorSpec("features", "FP32", (-1, 2))],
        [TensorSpec("probability", "FP32", (-1, 1)), TensorSpec("label", "BOOL", (-1, 1))],
    )


def test_one_graph_may_be_two_steps() -> None:
    twice = Pipeline(
        (SCALE, step("again", scale(), Wire("x", "scale", "y"))), (Wire("y", "again", "y"),)
    )
    [found] = run(compose(twice, GRAPHS), features=np.array([[7, 3]], np.float32))
    assert found.tolist() == [[1.0, 0.0]]


TEXT = model(
    [helper.make_node("Identity", ["x"], ["y"])],
    {"x": (TensorProto.INT64, [ROWS, 2])},
    {"y": (TensorProto.INT64, [ROWS, 2])},
)
NARROW = model(
    [helper.make_node("Identity", ["x"], ["y"])],
    {"x": (FLOAT, [ROWS, 3])},
    {"y": (FLOAT, [ROWS, 3])},
)
FLAT = model(
    [helper.make_node("Identity", ["x"], ["y"])], {"x": (FLOAT, [ROWS])}, {"y": (FLOAT, [ROWS])}
)


@pytest.mark.parametrize(
    ("pipeline", "field", "text"),
    [
        (
            Pipeline(
                (
                    replace(SCALE, inputs=(Wire("x", "linear", "y"),)),
                    replace(LINEAR, inputs=(Wire("x", "scale", "y"),)),
                ),
                (Wire("y", "linear", "y"),),
            ),
            "steps[0].inputs[0]",
            "shape",
        ),
        (
            Pipeline(
                (
                    step("a", scale(), Wire("x", "b", "y")),
                    step("b", scale(), Wire("x", "a", "y")),
                ),
                (Wire("y", "a", "y"),),
            ),
            "steps",
            "wait for each other: a, b",
        ),
        (
            Pipeline((SCALE, SCALE), (Wire("y", "scale", "y"),)),
            "steps[1].name",
            "name of its own",
        ),
        (Pipeline((), (Wire("y", "scale", "y"),)), "steps", "1 to 16"),
        (Pipeline((SCALE,), ()), "outputs", "has an output"),
        (Pipeline((SCALE,), (Wire("y", "scale", "z"),)), "outputs[0].source", "no output 'z'"),
        (Pipeline((SCALE,), (Wire("y", "other", "y"),)), "outputs[0].step", "no step 'other'"),
        (Pipeline((SCALE,), (Wire("y", "", "features"),)), "outputs[0].step", "from a step"),
        (
            Pipeline((SCALE,), (Wire("features", "scale", "y"),)),
            "outputs[0].tensor",
            "name of its own",
        ),
        (
            Pipeline((SCALE, step("l", linear(), Wire("z", "scale", "y"))), OUTPUTS),
            "steps[1].inputs[0].tensor",
            "no input 'z'",
        ),
        (
            Pipeline((SCALE, step("l", linear())), OUTPUTS),
            "steps[1].inputs",
            "nothing fills 'x'",
        ),
        (
            Pipeline((replace(SCALE, inputs=SCALE.inputs * 2),), OUTPUTS),
            "steps[0].inputs[0].tensor",
            "filled twice",
        ),
        (
            Pipeline((SCALE, LINEAR), (Wire("y", "scale", "y"),)),
            "steps[1]",
            "leads to no output",
        ),
        (
            Pipeline((SCALE, step("t", TEXT, Wire("x", "scale", "y"))), (Wire("y", "t", "y"),)),
            "steps[1].inputs[0]",
            "is INT64, its source FLOAT",
        ),
        (
            Pipeline((SCALE, step("n", NARROW, Wire("x", "scale", "y"))), (Wire("y", "n", "y"),)),
            "steps[1].inputs[0]",
            "[-1, 3], its source [-1, 2]",
        ),
        (
            Pipeline((SCALE, step("f", FLAT, Wire("x", "scale", "y"))), (Wire("y", "f", "y"),)),
            "steps[1].inputs[0]",
            "shape [-1]",
        ),
        (
            Pipeline((SCALE, step("n", NARROW, Wire("x", "", "features"))), (Wire("y", "n", "y"),)),
            "steps[1].inputs[0]",
            "[-1, 3], its source [-1, 2]",
        ),
        (
            Pipeline(
                (SCALE, step("old", scale(opset=17), Wire("x", "scale", "y"))),
                (Wire("y", "old", "y"),),
            ),
            "steps",
            "export them with the same",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_with_its_place(
    pipeline: Pipeline, field: str, text: str
) -> None:
    graphs = GRAPHS | {digest_of(data): data for data in (TEXT, NARROW, FLAT)}
    with pytest.raises(InvalidArgument) as caught:
        compose(pipeline, graphs)
    error = caught.value
    assert (error.reason, list(error.violations)) == (
        "PIPELINE_INVALID",
        [f"model_version.pipeline.{field}"],
    )
    assert text in error.message


def test_a_step_that_may_not_be_stored_may_not_be_composed() -> None:
    bad = Pipeline((Step("bad", "d", ()),), (Wire("y", "bad", "y"),))
    with pytest.raises(InvalidArgument) as caught:
        compose(bad, {"d": b"no onnx"})
    assert caught.value.reason == "ARTIFACT_REFUSED"
