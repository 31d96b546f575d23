"""What an ONNX artifact must not hold: data in other files, operators of unknown origin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from volary_kit.errors import InvalidArgument

REFUSED = "ARTIFACT_REFUSED"
# the standard's own operators, and those that onnxruntime and quantisation tools write
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


def check_graph(data: bytes) -> None:
    """Raise InvalidArgument `ARTIFACT_REFUSED` for bytes that must not become a version."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise _refused("the bytes are not an ONNX model") from None
    if not model.graph.output:
        raise _refused("the graph has no output")
    used = {opset.domain for opset in model.opset_import}
    used |= {node.domain for graph in _graphs(model) for node in graph.node}
    if foreign := sorted(used - DOMAINS):
        raise _refused(f"operators of domain {foreign[0]!r} are not allowed", domain=foreign[0])
    for graph in _graphs(model):
        for tensor in _tensors(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise _refused("tensor data in other files is not allowed", tensor=tensor.name)


def _graphs(model: Any) -> Iterator[Any]:
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else [])
                waiting.extend(attribute.graphs)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _refused(text: str, **metadata: str) -> InvalidArgument:
    return InvalidArgument(REFUSED, f"the artifact is refused: {text}", metadata)
