"""What an ONNX artifact must be before a runtime may see it.

onnxruntime reads external data through hard links and loads custom operators by name, so both
are refused here, on the parsed graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from volary_kit.errors import InvalidArgument

MAX_BYTES = 1 << 30
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


def check_onnx(data: bytes, max_bytes: int = MAX_BYTES) -> ModelProto:
    """Return the parsed model; raise InvalidArgument `ARTIFACT_REFUSED` with what is wrong."""
    if len(data) > max_bytes:
        raise refused(f"it has more than {max_bytes} bytes")
    try:
        model = ModelProto.FromString(data)
    except DecodeError:
        raise refused("it is not an ONNX file") from None
    _check_operators(model)
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise refused("it keeps data outside of the file")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise refused(f"the graph is not valid: {str(error).splitlines()[0][:200]}") from None
    return model


def refused(text: str) -> InvalidArgument:
    """Return the error of an artifact that is not accepted."""
    return InvalidArgument("ARTIFACT_REFUSED", f"the artifact is refused: {text}")


def _check_operators(model: ModelProto) -> None:
    if model.functions or model.training_info:
        raise refused("it has functions or training graphs of its own")
    domains = {opset.domain for opset in model.opset_import}
    domains |= {node.domain for graph in _graphs(model.graph) for node in graph.node}
    foreign = sorted(domains - DOMAINS)
    if foreign:
        raise refused(f"it has custom operators of {', '.join(foreign)[:200]}")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    for inner in _graphs(graph):
        yield from inner.initializer
        for sparse in inner.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in inner.node:
            yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
