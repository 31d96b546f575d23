"""V2's typed contents and its raw bytes, one from the other."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from inference import grpc_service_pb2 as v2
from volary_kit.datatypes import BYTES, TYPED, joined, split
from volary_kit.last_predictions import TensorBytes


def inputs_of(request: v2.ModelInferRequest) -> list[TensorBytes] | None:
    """Return a request's inputs as raw bytes; None for one that no version can have answered."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        return None
    found: list[TensorBytes] = []
    for index, row in enumerate(request.inputs):
        data = raw[index] if raw else _packed(row)
        if data is None:
            return None
        found.append((row.name, row.datatype, list(row.shape), data))
    return found


def fill_outputs(
    reply: v2.ModelInferResponse, kept: v2.ModelInferResponse, *, is_raw: bool
) -> None:
    """Write a kept reply's outputs: raw when the call was, or when one has no typed form."""
    is_raw = is_raw or any(row.datatype not in TYPED for row in kept.outputs)
    for row, data in zip(kept.outputs, kept.raw_output_contents, strict=True):
        output = reply.outputs.add(name=row.name, datatype=row.datatype, shape=list(row.shape))
        if is_raw:
            reply.raw_output_contents.append(data)
        else:
            values = values_of(row.datatype, data)
            getattr(output.contents, TYPED[row.datatype].contents).extend(values)


def values_of(datatype: str, data: bytes) -> Sequence[Any]:
    """Return the elements of raw bytes; none of a datatype without a typed form."""
    if datatype == BYTES:
        return split(data, len(data)) or ()
    if datatype not in TYPED:
        return ()
    letter = TYPED[datatype].letter
    return struct.unpack(f"<{len(data) // struct.calcsize(f'<{letter}')}{letter}", data)


def _packed(row: v2.ModelInferRequest.InferInputTensor) -> bytes | None:
    if row.datatype not in TYPED:
        return None
    contents, letter = TYPED[row.datatype]
    values = getattr(row.contents, contents)
    if row.datatype == BYTES:
        return joined(values)
    try:
        return struct.pack(f"<{len(values)}{letter}", *values)
    except (struct.error, OverflowError):  # a value that does not fit its datatype
        return None
