"""An inference reply as HTTP has it: JSON, and behind it the outputs that go as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference import grpc_service_pb2 as pb

from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.tensors import from_values, to_raw
from volary_inference.rest import documents, parameters, values
from volary_inference.rest.requests import BINARY_SIZE, REGION, Wanted


@dataclass(frozen=True, slots=True)
class Body:
    """A body; `json_bytes` is the length of its JSON where bytes follow, None where none do."""

    data: bytes
    json_bytes: int | None = None


def body_of(reply: pb.ModelInferResponse, wanted: Wanted) -> Body:
    """Write a reply; raise FailedPrecondition for an output that JSON cannot say."""
    document: dict[str, Any] = {
        "model_name": reply.model_name,
        "model_version": reply.model_version,
    }
    if reply.id:
        document["id"] = reply.id
    document["parameters"] = parameters.plain(reply.parameters)
    tail: list[bytes] = []
    raw = iter(reply.raw_output_contents)
    rows: list[dict[str, Any]] = []
    for tensor in reply.outputs:
        row: dict[str, Any] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)
        }  # fmt: skip
        stated = parameters.plain(tensor.parameters)
        if REGION not in stated:
            data = _raw_of(tensor) if tensor.HasField("contents") else next(raw, b"")
            if wanted.is_binary(tensor.name):
                stated[BINARY_SIZE] = len(data)
                tail.append(data)
            else:
                row["data"] = values.data_of(data, tensor.datatype, tensor.shape, tensor.name)
        if stated:
            row["parameters"] = stated
        rows.append(row)
    document["outputs"] = rows
    text = documents.written(document)
    is_mixed = any(BINARY_SIZE in row.get("parameters", {}) for row in rows)
    return Body(b"".join((text, *tail)), len(text) if is_mixed else None)


def _raw_of(tensor: pb.ModelInferResponse.InferOutputTensor) -> bytes:
    """Return the bytes of typed contents: a fallback at the edge answers with those."""
    contents = list(getattr(tensor.contents, DATATYPES[tensor.datatype].contents))
    return to_raw(from_values(tensor.name, tensor.datatype, tensor.shape, contents, tensor.name))
