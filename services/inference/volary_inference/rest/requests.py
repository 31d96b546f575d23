"""An inference request over HTTP as the message that it stands for.

The JSON comes first; where the header says how long it is, the bytes of the tensors that state a
`binary_data_size` follow it, in the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference import grpc_service_pb2 as pb
from volary_kit.errors import InvalidArgument

from volary_inference.domain.tensors import MAX_RANK
from volary_inference.rest import documents, parameters, values
from volary_inference.rest.documents import Document, required

BINARY_SIZE, BINARY, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
REGION = "shared_memory_region"
TIMEOUT = "timeout"
MICROS = 1_000_000
MAX_TENSORS = 1_024
HOP_S = 0.05  # the server's own deadline ends a call first, and says more


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which outputs the caller wants as bytes: those named, else all or none."""

    by_name: Mapping[str, bool]
    otherwise: bool

    def is_binary(self, name: str) -> bool:
        """Say whether an output goes behind the JSON."""
        return self.by_name.get(name, self.otherwise)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as gRPC has it, and how its reply is to be written."""

    message: pb.ModelInferRequest
    wanted: Wanted
    timeout_s: float | None
    uses_shared_memory: bool


class Tail:
    """The bytes behind the JSON, taken one tensor after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int, field: str) -> bytes:
        """Return the next bytes; raise InvalidArgument when there are not so many."""
        end = self._at + size
        if end > len(self._data):
            text = f"{field} states {size} bytes, {len(self._data) - self._at} are left"
            raise InvalidArgument("BINARY_SIZE_MISMATCH", text, field=field)
        found = bytes(self._data[self._at : end])
        self._at = end
        return found

    def require_used(self) -> None:
        """Raise InvalidArgument when bytes are left that belong to no input."""
        left = len(self._data) - self._at
        if left:
            text = f"{left} bytes behind the JSON belong to no input"
            raise InvalidArgument("BINARY_SIZE_MISMATCH", text)


def asked(model: str, version: str, body: bytes, json_bytes: int) -> Asked:
    """Read a body whose first `json_bytes` are JSON; raise InvalidArgument."""
    whole = memoryview(body)
    document, tail = documents.read(whole[:json_bytes]), Tail(whole[json_bytes:])
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    message.id = required(document.get("id", ""), str, "id")
    for index, row in enumerate(_rows(document, "inputs")):
        _input(message, row, tail, f"inputs[{index}]")
    tail.require_used()
    by_name = dict(
        _output(message, row, f"outputs[{index}]")
        for index, row in enumerate(_rows(document, "outputs"))
    )
    given = dict(required(document.get("parameters", {}), dict, "parameters"))
    otherwise = required(given.pop(ALL_BINARY, False), bool, f"parameters.{ALL_BINARY}")
    wanted = Wanted({n: is_it for n, is_it in by_name.items() if is_it is not None}, otherwise)
    parameters.fill(message.parameters, given, "parameters")
    tensors = (*message.inputs, *message.outputs)
    is_shared = any(REGION in each.parameters for each in tensors)
    return Asked(message, wanted, _timeout_s(message), is_shared)


def _rows(document: Document, name: str) -> Sequence[Any]:
    rows = required(document.get(name, []), list, name)
    if len(rows) > MAX_TENSORS:
        text = f"a request has at most {MAX_TENSORS} {name}"
        raise InvalidArgument("TENSORS_TOO_MANY", text, field=name)
    return rows


def _input(message: pb.ModelInferRequest, row: object, tail: Tail, field: str) -> None:
    fields = required(row, dict, field)
    tensor = message.inputs.add(
        name=required(fields.get("name", ""), str, f"{field}.name"),
        datatype=required(fields.get("datatype", ""), str, f"{field}.datatype"),
        shape=_shape(fields.get("shape", []), f"{field}.shape"),
    )
    given = dict(required(fields.get("parameters", {}), dict, f"{field}.parameters"))
    size = given.pop(BINARY_SIZE, None)
    parameters.fill(tensor.parameters, given, f"{field}.parameters")
    sources = [size is not None, "data" in fields, REGION in given]
    if sum(sources) != 1:
        text = f"{field} has exactly one of data, {BINARY_SIZE} and {REGION}"
        raise InvalidArgument(
            "DATA_MISSING" if not any(sources) else "DATA_TWICE", text, field=field
        )
    if size is not None:
        message.raw_input_contents.append(tail.take(_size(size, field), field))
    elif "data" in fields:
        raw = values.raw_of(fields["data"], tensor.datatype, tensor.shape, field)
        message.raw_input_contents.append(raw)


def _output(message: pb.ModelInferRequest, row: object, field: str) -> tuple[str, bool | None]:
    fields = required(row, dict, field)
    name = required(fields.get("name", ""), str, f"{field}.name")
    output = message.outputs.add(name=name)
    given = dict(required(fields.get("parameters", {}), dict, f"{field}.parameters"))
    wanted = given.pop(BINARY, None)
    parameters.fill(output.parameters, given, f"{field}.parameters")
    if wanted is not None:
        required(wanted, bool, f"{field}.parameters.{BINARY}")
    return name, wanted


def _shape(given: object, field: str) -> list[int]:
    """Return the sizes; what cannot be written in 64 bits is refused here, the rest upstream."""
    sizes = required(given, list, field)
    limit = 1 << 63
    if len(sizes) > MAX_RANK or any(type(n) is not int or not -limit <= n < limit for n in sizes):
        text = f"a shape has at most {MAX_RANK} whole numbers"
        raise InvalidArgument("SHAPE_INVALID", text, field=field)
    return sizes


def _size(given: object, field: str) -> int:
    if type(given) is not int or given < 0:
        text = f"{BINARY_SIZE} is a number of bytes"
        raise InvalidArgument(
            "BINARY_SIZE_MISMATCH", text, field=f"{field}.parameters.{BINARY_SIZE}"
        )
    return given


def _timeout_s(message: pb.ModelInferRequest) -> float | None:
    """Return how long the call may take by its own `timeout` in microseconds, None without."""
    if TIMEOUT not in message.parameters:
        return None
    given = message.parameters[TIMEOUT]
    timeout_us = given.int64_param or given.uint64_param
    return timeout_us / MICROS + HOP_S if timeout_us > 0 else None
