"""What an ONNX artifact must be before it is stored, and again before a runtime may see it.

onnxruntime reads external data through hard links and loads custom operators by name, so both
are refused here, on the parsed graph and every graph inside its nodes. A service that asks this
module depends on `onnx` itself: it takes a second to import, and happens in the first check.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from volary_kit.errors import InvalidArgument

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

REFUSED = "ARTIFACT_REFUSED"
MAX_BYTES = 1 << 30
MAX_NESTING = 8  # graphs inside of nodes inside of graphs; exporters write two
MAX_NAME = 256
STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
CONTRIBUTED = "com.microsoft"
# what quantisation and fusion tools write; any other operator of that domain is refused
OPERATORS = frozenset(
    {
        "BiasGelu",
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
        "FastGelu",
        "FusedMatMul",
        "Gelu",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearAdd",
        "QLinearConcat",
        "QLinearMul",
        "QLinearSigmoid",
        "QuantizeLinear",
        "QuickGelu",
        "SkipLayerNormalization",
    }
)


def check_graph(data: bytes, max_bytes: int = MAX_BYTES) -> ModelProto:
    """Return the parsed model; raise InvalidArgument `ARTIFACT_REFUSED` with what is wrong."""
    import onnx

    if len(data) > max_bytes:
        raise refused(f"it has more than {max_bytes} bytes")
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise refused("it is not an ONNX file") from None
    _check_domains(model)
    for graph in _graphs(model.graph):
        _check_names(graph)
        for tensor in _tensors(graph):
            _check_tensor(tensor, len(data))
    _check_signature(model.graph)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        text = (str(error).splitlines() or [""])[0][:200]
        raise refused(f"the graph is not valid: {text}") from None
    return model


def refused(text: str, **metadata: str) -> InvalidArgument:
    """Return the error of an artifact that is not accepted."""
    return InvalidArgument(REFUSED, f"the artifact is refused: {text}", metadata)


def _check_domains(model: ModelProto) -> None:
    if model.functions or model.training_info:
        raise refused("it has functions or training graphs of its own")
    used = {opset.domain for opset in model.opset_import}
    foreign = sorted(used - STANDARD - {CONTRIBUTED})
    if foreign:
        raise refused(f"it has custom operators of {foreign[0][:64]!r}", domain=foreign[0][:64])
    for graph in _graphs(model.graph):
        for node in graph.node:
            _check_operator(node)


def _check_operator(node: NodeProto) -> None:
    if node.domain in STANDARD or (node.domain == CONTRIBUTED and node.op_type in OPERATORS):
        return
    name = f"{node.domain[:64]}.{node.op_type[:64]}"
    raise refused(f"it has custom operators: {name!r}", domain=node.domain[:64])


def _check_names(graph: GraphProto) -> None:
    """Refuse a name that means two things; an input may have a default of its own name."""
    inputs = [value.name for value in graph.input]
    constants = [tensor.name for tensor in graph.initializer]
    constants += [sparse.values.name for sparse in graph.sparse_initializer]
    made = [name for node in graph.node for name in node.output if name]
    outputs = [value.name for value in graph.output]
    for names in (inputs, constants, outputs, [*made, *(set(inputs) | set(constants))]):
        twice = _twice(names)
        if twice is not None:
            raise refused(f"the name {twice[:64]!r} is given twice")


def _twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _check_tensor(tensor: TensorProto, file_bytes: int) -> None:
    from onnx import TensorProto

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise refused("it keeps data outside of the file", tensor=tensor.name[:64])
    # four bits are the smallest element, so a shape beyond that is not in this file
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > 2 * file_bytes:
        raise refused("a tensor's shape is not that of its data", tensor=tensor.name[:64])


def _check_signature(graph: GraphProto) -> None:
    if not graph.output:
        raise refused("the graph is not valid: it has no output")
    for value in (*graph.input, *graph.output):
        if not value.name or len(value.name) > MAX_NAME or not value.name.isprintable():
            raise refused("an input or output has no name that a call could give")
        if not value.type.HasField("tensor_type"):
            raise refused(f"{value.name[:64]!r} is not a tensor")


def _graphs(graph: GraphProto, depth: int = 0) -> Iterator[GraphProto]:
    """Yield a graph and every graph inside its nodes."""
    if depth > MAX_NESTING:
        raise refused(f"it nests graphs more than {MAX_NESTING} deep")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in _inner(attribute):
                yield from _graphs(inner, depth + 1)


def _inner(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)
