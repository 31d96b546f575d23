"""Requests that no caller should send, made from the descriptors of a message."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

MIB = 1 << 20
DEPTH = 5_000
FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
TIMESTAMP = "google.protobuf.Timestamp"
BEFORE_YEAR_1, AFTER_YEAR_9999 = -62_135_596_801, 253_402_300_800
PLAUSIBLE = {"name": "projects/default/things/x", "parent": "projects/default"}


@dataclass(frozen=True)
class BadRequest:
    """Bytes to send; `is_invalid` when no server may take them for a request."""

    kind: str
    data: bytes
    is_invalid: bool


def bad_requests(request_type: type[Message]) -> Iterator[BadRequest]:
    """Yield the bad requests that a message type allows."""
    descriptor: Any = request_type.DESCRIPTOR
    yield BadRequest("empty", b"", is_invalid=False)
    yield BadRequest("truncated", b"\x0a\xff\x01abc", is_invalid=True)
    yield BadRequest("no protobuf", b"\xff" * 16, is_invalid=True)
    yield BadRequest("nested groups", b"\x0b" * DEPTH + b"\x0c" * DEPTH, is_invalid=True)
    yield BadRequest("wrong wire types", _wrong_wire_types(descriptor), is_invalid=False)
    yield from _strings(request_type, descriptor)
    yield from _numbers(request_type, descriptor)
    yield from _times(request_type, descriptor)
    nan = _with_nan(request_type)
    if nan is not None:
        yield BadRequest("NaN", nan.SerializeToString(), is_invalid=True)
    yield BadRequest("plausible", plausible(request_type).SerializeToString(), is_invalid=False)


def _wrong_wire_types(descriptor: Descriptor) -> bytes:
    # each field as a varint where it is none, as four bytes where it is one
    data = b""
    for field in descriptor.fields:
        is_varint = field.cpp_type in LIMITS or field.cpp_type == FieldDescriptor.CPPTYPE_BOOL
        kind, value = (5, b"\1\2\3\4") if is_varint else (0, b"\1")
        data += _varint(field.number << 3 | kind) + value
    return data


def _varint(number: int) -> bytes:
    data = b""
    while number >= 0x80:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def _strings(request_type: type[Message], descriptor: Descriptor) -> Iterator[BadRequest]:
    fields = [field for field in descriptor.fields if field.type == FieldDescriptor.TYPE_STRING]
    if not fields:
        return
    tag = _varint(fields[0].number << 3 | 2)
    yield BadRequest("invalid UTF-8", tag + b"\x02\xc3\x28", is_invalid=True)
    for kind, text in (("a huge string", "x" * MIB), ("NUL and friends", "\0'\"%s{}\u202e")):
        request = request_type()
        _set_strings(request, [fields[0]], text)
        yield BadRequest(kind, request.SerializeToString(), is_invalid=False)


def _numbers(request_type: type[Message], descriptor: Descriptor) -> Iterator[BadRequest]:
    fields = [f for f in descriptor.fields if f.cpp_type in LIMITS and not f.is_repeated]
    if not fields:
        return
    for end, kind in enumerate(("smallest numbers", "largest numbers")):
        request = plausible(request_type)
        for field in fields:
            setattr(request, field.name, LIMITS[field.cpp_type][end])
        yield BadRequest(kind, request.SerializeToString(), is_invalid=False)


def _times(request_type: type[Message], descriptor: Descriptor) -> Iterator[BadRequest]:
    fields = [
        field
        for field in descriptor.fields
        if field.message_type is not None
        and field.message_type.full_name == TIMESTAMP
        and not field.is_repeated
    ]
    if not fields:
        return
    for kind, seconds in (("year 0", BEFORE_YEAR_1), ("year 10000", AFTER_YEAR_9999)):
        request = plausible(request_type)
        for field in fields:
            getattr(request, field.name).seconds = seconds
        yield BadRequest(kind, request.SerializeToString(), is_invalid=False)


def plausible(request_type: type[Message]) -> Message:
    """Return a request whose strings look like somebody meant them."""
    request = request_type()
    descriptor: Any = request_type.DESCRIPTOR
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            _set_strings(request, [field], PLAUSIBLE.get(field.name, "x1"))
    return request


def _set_strings(request: Message, fields: list[FieldDescriptor], text: str) -> None:
    for field in fields:
        if field.is_repeated:
            getattr(request, field.name).append(text)
        else:
            setattr(request, field.name, text)


def _with_nan(request_type: type[Message]) -> Message | None:
    request = plausible(request_type)
    return request if _put_nan(request, depth=6) else None


def _put_nan(message: Message, depth: int) -> bool:
    """Set the first float field that is found, breadth before depth."""
    descriptor: Any = message.DESCRIPTOR
    for field in descriptor.fields:
        if field.cpp_type in FLOATS:
            if field.is_repeated:
                getattr(message, field.name).append(math.nan)
            else:
                setattr(message, field.name, math.nan)
            return True
    return depth > 0 and any(_put_nan_below(message, field, depth) for field in descriptor.fields)


def _put_nan_below(message: Message, field: FieldDescriptor, depth: int) -> bool:
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return False
    if not field.is_repeated:
        below = getattr(message, field.name)
        if _put_nan(below, depth - 1):
            return True
        message.ClearField(field.name)
        return False
    if _put_nan(getattr(message, field.name).add(), depth - 1):
        return True
    message.ClearField(field.name)
    return False
