"""What a request must look like: the rules of its .proto, and no NaN anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from volary_kit.calls import Call
from volary_kit.errors import Internal, InvalidArgument
from volary_kit.rules.chain import Rule

# the last two bytes of every NaN on the wire, a float or a double, both little-endian
NAN_END = re.compile(rb"[\x80-\xff][\x7f\xff]")
SEARCHED_BYTES = 16_384  # above, a walk through the fields is cheaper than another copy
FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


class Validation(Rule):
    """Check each request message against the `buf.validate` rules of its .proto."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def received(self, call: Call, request: Message) -> None:
        path = nan_path(request)
        if path is not None:
            raise InvalidArgument("NOT_A_NUMBER", "NaN is not accepted", field=path)
        if not has_rules(request.DESCRIPTOR):
            return
        try:
            violations = self._validator.collect_violations(request)
        except protovalidate.CompilationError as error:
            raise Internal("VALIDATION_RULE_BROKEN", f"{call.method}: {error}") from error
        except protovalidate.EvaluationError as error:
            # a rule of the .proto that cannot be worked out for these very values
            raise InvalidArgument("INVALID_REQUEST", "the request breaks a rule") from error
        if violations:
            raise invalid(violations)


def invalid(violations: Iterable[protovalidate.Violation]) -> InvalidArgument:
    """Return one error that names every field which breaks a rule."""
    found = {field_path(violation): violation.proto.message for violation in violations}
    field, text = next(iter(found.items()))
    return InvalidArgument("INVALID_REQUEST", f"{field}: {text}", violations=found)


def field_path(violation: protovalidate.Violation) -> str:
    """Return the path of a violation, as `steps[0].weight`."""
    parts: list[str] = []
    path = violation.proto.field
    for element in () if path is None else path.elements:
        subscript = "" if element.subscript is None else f"[{element.subscript.value}]"
        parts.append(element.field_name + subscript)
    return ".".join(parts) or "request"


def decoded(kind: type[Message], data: bytes) -> Message:
    """Parse a request; malformed bytes are the caller's fault, not INTERNAL as gRPC has it."""
    try:
        return kind.FromString(data)
    except DecodeError:
        text = f"the bytes are no valid {kind.DESCRIPTOR.full_name}"
        raise InvalidArgument("MALFORMED_REQUEST", text) from None


def nan_path(message: Message) -> str | None:
    """Return the path of a NaN in the message, None if there is none."""
    if not may_hold_floats(message.DESCRIPTOR):
        return None
    if message.ByteSize() <= SEARCHED_BYTES:
        data = message.SerializePartialToString()
        if NAN_END.search(data) is None:
            return None
    return _nan_below(message)


def _nan_below(message: Message) -> str | None:
    for field in _float_fields(message.DESCRIPTOR):
        if not field.is_repeated and field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        path = _nan_in_field(field, value) if value or not field.is_repeated else None
        if path is not None:
            return path
    return None


def _nan_in_field(field: FieldDescriptor, value: Any) -> str | None:
    if field.cpp_type in FLOATS:
        return field.name if _holds_nan(value if field.is_repeated else (value,)) else None
    if not field.is_repeated:
        return _below(field.name, value)
    if is_map(field):
        return _nan_in_map(field, value)
    for index, element in enumerate(value):
        path = _below(f"{field.name}[{index}]", element)
        if path is not None:
            return path
    return None


def is_map(field: FieldDescriptor) -> bool:
    """Say whether a repeated field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _nan_in_map(field: FieldDescriptor, value: Any) -> str | None:
    entry = field.message_type
    of_messages = entry is not None and entry.fields_by_name["value"].message_type is not None
    for key, element in value.items():
        where = f"{field.name}[{key!r}]"
        if of_messages:
            path = _below(where, element)
            if path is not None:
                return path
        elif _holds_nan((element,)):
            return where
    return None


def _below(where: str, message: Message) -> str | None:
    inner = _nan_below(message)
    return None if inner is None else f"{where}.{inner}"


def _holds_nan(values: Iterable[float]) -> bool:
    # a NaN makes the sum NaN, at the speed of C; inf - inf does too, so look again then
    total = sum(values)
    return total != total and any(value != value for value in values)


@cache
def _float_fields(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Return the fields in which, or below which, a float may be."""
    return tuple(
        field
        for field in descriptor.fields
        if field.cpp_type in FLOATS
        or (field.message_type is not None and may_hold_floats(field.message_type))
    )


@cache
def may_hold_floats(descriptor: Descriptor) -> bool:
    """Say whether a message of this type can hold a float at any depth."""
    return any(
        field.cpp_type in FLOATS for below in _reachable(descriptor) for field in below.fields
    )


@cache
def has_rules(descriptor: Descriptor) -> bool:
    """Say whether the .proto has a `buf.validate` rule for a message, at any depth."""
    return any(_has_rule(below) for below in _reachable(descriptor))


def _has_rule(descriptor: Descriptor) -> bool:
    return (
        descriptor.GetOptions().HasExtension(validate_pb2.message)
        or any(each.GetOptions().HasExtension(validate_pb2.field) for each in descriptor.fields)
        or any(each.GetOptions().HasExtension(validate_pb2.oneof) for each in descriptor.oneofs)
    )


def _reachable(descriptor: Descriptor) -> Iterator[Descriptor]:
    """Yield a message type and every type below it, each once."""
    seen: set[str] = set()
    pending = [descriptor]
    while pending:
        current = pending.pop()
        if current.full_name in seen:
            continue
        seen.add(current.full_name)
        yield current
        pending += [field.message_type for field in current.fields if field.message_type]
