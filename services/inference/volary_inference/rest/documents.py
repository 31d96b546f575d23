"""JSON as the protocol writes it, read strictly, and messages as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any, NoReturn

from google.protobuf.message import Message
from volary_kit.errors import InvalidArgument

Document = dict[str, Any]
_KINDS: dict[type, str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def read(text: bytes | memoryview) -> Document:
    """Return the object of a body, empty for no body; raise InvalidArgument for anything else."""
    if not text:
        return {}
    try:
        found = json.loads(str(text, "utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise InvalidArgument("JSON_INVALID", "the body is not JSON") from None
    return required(found, dict, "the body")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def required(value: object, kind: type, field: str) -> Any:
    """Return a value of a kind; raise InvalidArgument that names its place for another."""
    if type(value) is not kind:
        raise InvalidArgument("JSON_TYPE_MISMATCH", f"{field} must be {_KINDS[kind]}", field=field)
    return value


def written(document: object) -> bytes:
    """Return compact JSON."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def plain(message: Message, *, is_whole: bool = False) -> Document:
    """Return a message as the protocol's JSON: every number a number, names as they are.

    A message that is not set is left out, or written with its defaults when `is_whole`.
    """
    found: Document = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            found[field.name] = _scalars(field, value)
        elif field.message_type.GetOptions().map_entry:
            found[field.name] = {str(k): plain(v, is_whole=is_whole) for k, v in value.items()}
        elif field.is_repeated:
            found[field.name] = [plain(each, is_whole=is_whole) for each in value]
        elif is_whole or message.HasField(field.name):
            found[field.name] = plain(value, is_whole=is_whole)
    return found


def _scalars(field: Any, value: Any) -> object:
    if field.is_repeated:
        return [_scalar(field, each) for each in value]
    return _scalar(field, value)


def _scalar(field: Any, value: Any) -> object:
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
