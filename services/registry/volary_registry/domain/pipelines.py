"""Several graphs that are released as one version: wired, checked, composed into one graph.

The composed graph is the version's artifact, so that whatever holds for a graph holds for it:
one digest, golden rows over the whole, one run a batch, any engine. A step's inner names get its
name as a prefix; a wire is an Identity node, which runtimes remove.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from volary_kit.errors import InvalidArgument
from volary_kit.graphs import check_graph

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

STEP_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
MAX_STEPS = 16
# ONNX's name of a type, where V2 has another
V2_DATATYPES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
}
FIELD = "model_version.pipeline"
Place: TypeAlias = tuple[str, str]  # a step and one of its tensors; no step: the version's own


@dataclass(frozen=True, slots=True)
class Wire:
    """Fills `tensor` with the output `source` of `step`, or with the version's own input."""

    tensor: str
    step: str
    source: str


@dataclass(frozen=True, slots=True)
class Step:
    """One graph and what fills its inputs."""

    name: str
    digest: str
    inputs: tuple[Wire, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The steps and, as wires, the outputs of the version."""

    steps: tuple[Step, ...]
    outputs: tuple[Wire, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as V2 describes it; -1 is a size that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def compose(pipeline: Pipeline, graphs: Mapping[str, bytes]) -> bytes:
    """Return one graph that does what the steps do; `graphs` holds theirs by digest.

    The same pipeline gives the same bytes. Raises InvalidArgument `PIPELINE_INVALID` with the
    field at fault for a cycle, an unknown step or tensor, an input that nothing or two things
    fill, datatypes or shapes that disagree, a step that leads nowhere; `ARTIFACT_REFUSED` for
    a graph that may not be.
    """
    _check_names(pipeline)
    models = {step.name: check_graph(graphs[step.digest]) for step in pipeline.steps}
    _check_wires(pipeline, models)
    order = _ordered(pipeline)
    _check_ends(pipeline)
    data = _composed(pipeline, order, models).SerializeToString(deterministic=True)
    check_graph(data)
    return data


def signature(data: bytes) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return the inputs and outputs of a graph; an unknown rank has no shape."""
    graph = check_graph(data).graph
    return [_spec(value) for value in _inputs(graph).values()], [_spec(v) for v in graph.output]


def _spec(value: ValueInfoProto) -> TensorSpec:
    kind = _datatype(value.type.tensor_type.elem_type)
    return TensorSpec(value.name, V2_DATATYPES.get(kind, kind), tuple(_shape(value)))


def _check_names(pipeline: Pipeline) -> None:
    if not 1 <= len(pipeline.steps) <= MAX_STEPS:
        raise _invalid(f"a pipeline has 1 to {MAX_STEPS} steps", "steps")
    seen: set[str] = set()
    for at, step in enumerate(pipeline.steps):
        if STEP_NAME.fullmatch(step.name) is None or step.name in seen:
            text = "a step has a name of its own of lower-case letters, digits and underscores"
            raise _invalid(text, f"steps[{at}].name")
        seen.add(step.name)
    if not pipeline.outputs:
        raise _invalid("a pipeline has an output", "outputs")


def _check_wires(pipeline: Pipeline, models: Mapping[str, ModelProto]) -> None:
    """Check that each input is filled once, by something of its kind."""
    own: dict[str, ValueInfoProto] = {}
    for at, step in enumerate(pipeline.steps):
        taken = _inputs(models[step.name].graph)
        _check_complete(step, taken, f"steps[{at}].inputs")
        for number, wire in enumerate(step.inputs):
            field = f"steps[{at}].inputs[{number}]"
            given = _source(wire, models, own, taken[wire.tensor], field)
            _check_agreement(wire, given, taken[wire.tensor], field)
    names = [wire.tensor for wire in pipeline.outputs]
    for number, wire in enumerate(pipeline.outputs):
        field = f"outputs[{number}]"
        if not wire.tensor or names.count(wire.tensor) > 1 or wire.tensor in own:
            raise _invalid("an output has a name of its own", f"{field}.tensor")
        if not wire.step:
            raise _invalid("an output comes from a step", f"{field}.step")
        _source(wire, models, own, None, field)


def _check_complete(step: Step, taken: Mapping[str, ValueInfoProto], field: str) -> None:
    wired = [wire.tensor for wire in step.inputs]
    for number, name in enumerate(wired):
        if name not in taken:
            text = f"step {step.name} has no input {name!r}; it has {', '.join(taken)}"
            raise _invalid(text, f"{field}[{number}].tensor")
        if wired.count(name) > 1:
            raise _invalid(f"{name!r} is filled twice", f"{field}[{number}].tensor")
    missing = sorted(taken.keys() - set(wired))
    if missing:
        raise _invalid(f"nothing fills {missing[0]!r} of step {step.name}", field)


def _source(
    wire: Wire,
    models: Mapping[str, ModelProto],
    own: dict[str, ValueInfoProto],
    taken: ValueInfoProto | None,
    field: str,
) -> ValueInfoProto:
    """Return what a wire comes from; the first step that asks describes an input of the version."""
    if not wire.step and taken is not None:
        if not wire.source:
            raise _invalid("an input of the version has a name", f"{field}.source")
        return own.setdefault(wire.source, taken)
    if wire.step not in models:
        raise _invalid(f"there is no step {wire.step!r}", f"{field}.step")
    outputs = {value.name: value for value in models[wire.step].graph.output}
    if wire.source not in outputs:
        text = f"step {wire.step} has no output {wire.source!r}; it has {', '.join(outputs)}"
        raise _invalid(text, f"{field}.source")
    return outputs[wire.source]


def _check_agreement(wire: Wire, given: ValueInfoProto, taken: ValueInfoProto, field: str) -> None:
    one, other = given.type.tensor_type, taken.type.tensor_type
    if one.elem_type != other.elem_type:
        kinds = _datatype(other.elem_type), _datatype(one.elem_type)
        text = f"{wire.tensor!r} is {kinds[0]}, its source {kinds[1]}"
        raise _invalid(text, field)
    if not (one.HasField("shape") and other.HasField("shape")):
        return
    shapes = _shape(given), _shape(taken)
    if len(shapes[0]) != len(shapes[1]) or any(
        a >= 0 and b >= 0 and a != b for a, b in zip(*shapes, strict=True)
    ):
        text = f"{wire.tensor!r} has shape {shapes[1]}, its source {shapes[0]}"
        raise _invalid(text, field)


def _ordered(pipeline: Pipeline) -> list[Step]:
    """Return the steps so that each comes after what it reads; refuse a cycle."""
    waiting, order = list(pipeline.steps), list[Step]()
    while waiting:
        waits_for = {step.name for step in waiting}
        free = [s for s in waiting if not any(wire.step in waits_for for wire in s.inputs)]
        if not free:
            names = ", ".join(step.name for step in waiting)
            raise _invalid(f"the steps wait for each other: {names}", "steps")
        order += free
        waiting = [step for step in waiting if step not in free]
    return order


def _check_ends(pipeline: Pipeline) -> None:
    steps = {step.name: step for step in pipeline.steps}
    reached, left = set[str](), [wire.step for wire in pipeline.outputs]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += [wire.step for wire in steps[name].inputs if wire.step]
    for at, step in enumerate(pipeline.steps):
        if step.name not in reached:
            raise _invalid(f"step {step.name} leads to no output", f"steps[{at}]")


def _composed(
    pipeline: Pipeline, order: Sequence[Step], models: Mapping[str, ModelProto]
) -> ModelProto:
    from onnx import compose, helper

    # inner names carry the step's; an input of the version may look like one, a step's name not
    parts = {
        step.name: compose.add_prefix(models[step.name], prefix=f"{step.name}/") for step in order
    }
    nodes: list[NodeProto] = []
    for step in order:
        nodes += [_identity(wire, f"{step.name}/{wire.tensor}") for wire in step.inputs]
        nodes += parts[step.name].graph.node
    nodes += [_identity(wire, wire.tensor) for wire in pipeline.outputs]
    graph = helper.make_graph(
        nodes,
        "pipeline",
        list(_own_inputs(pipeline, models)),
        [_renamed(_output(wire, models), wire.tensor) for wire in pipeline.outputs],
        [tensor for part in parts.values() for tensor in part.graph.initializer],
    )
    for part in parts.values():
        graph.sparse_initializer.extend(part.graph.sparse_initializer)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*row) for row in _opsets(order, models)],
        ir_version=max(model.ir_version for model in models.values()),
    )


def _opsets(order: Sequence[Step], models: Mapping[str, ModelProto]) -> list[tuple[str, int]]:
    """Return the operator sets of all steps; one domain has one version in a graph."""
    found: dict[str, int] = {}
    for step in order:
        for opset in models[step.name].opset_import:
            domain = "" if opset.domain == "ai.onnx" else opset.domain
            if found.setdefault(domain, opset.version) != opset.version:
                text = (
                    f"step {step.name} has operator set {opset.version} of {domain or 'ai.onnx'},"
                    f" another step {found[domain]}: export them with the same"
                )
                raise _invalid(text, "steps")
    return sorted(found.items())


def _own_inputs(pipeline: Pipeline, models: Mapping[str, ModelProto]) -> Iterator[ValueInfoProto]:
    seen: set[str] = set()
    for step in pipeline.steps:
        taken = _inputs(models[step.name].graph)
        for wire in step.inputs:
            if not wire.step and wire.source not in seen:
                seen.add(wire.source)
                yield _renamed(taken[wire.tensor], wire.source)


def _identity(wire: Wire, target: str) -> NodeProto:
    from onnx import helper

    source = f"{wire.step}/{wire.source}" if wire.step else wire.source
    return helper.make_node("Identity", [source], [target])


def _inputs(graph: GraphProto) -> dict[str, ValueInfoProto]:
    """Return what has to be given: an input with a default of its name has not."""
    defaults = {tensor.name for tensor in graph.initializer}
    return {value.name: value for value in graph.input if value.name not in defaults}


def _output(wire: Wire, models: Mapping[str, ModelProto]) -> ValueInfoProto:
    return next(v for v in models[wire.step].graph.output if v.name == wire.source)


def _renamed(value: ValueInfoProto, name: str) -> ValueInfoProto:
    found = type(value)()
    found.CopyFrom(value)
    found.name = name
    return found


def _shape(value: ValueInfoProto) -> list[int]:
    """Return a shape with -1 for a size that varies."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]


def _datatype(kind: int) -> str:
    from onnx import TensorProto

    return TensorProto.DataType.Name(kind)


def _invalid(text: str, field: str) -> InvalidArgument:
    return InvalidArgument("PIPELINE_INVALID", text, field=f"{FIELD}.{field}")
