"""Parameters between JSON and messages: a JSON value has its type there."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from inference import grpc_service_pb2 as pb
from volary_kit.errors import InvalidArgument

INT64_MAX, INT64_MIN, UINT64_MAX = (1 << 63) - 1, -(1 << 63), (1 << 64) - 1


def fill(
    into: MutableMapping[str, pb.InferParameter], given: Mapping[str, object], field: str
) -> None:
    """Write parameters into a message; raise InvalidArgument for what is no scalar."""
    for name, value in given.items():
        where = f"{field}.{name[:64]}"
        match value:
            case bool():
                into[name].bool_param = value
            case int() if INT64_MIN <= value <= INT64_MAX:
                into[name].int64_param = value
            case int() if 0 < value <= UINT64_MAX:
                into[name].uint64_param = value
            case float() if math.isfinite(value):
                into[name].double_param = value
            case str():
                into[name].string_param = value
            case _:
                text = "a parameter is a string, a number that fits 64 bits, true or false"
                raise InvalidArgument("PARAMETER_INVALID", text, field=where)


def plain(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Return parameters as JSON values, in order of name."""
    found: dict[str, Any] = {}
    for name, value in sorted(parameters.items()):
        which = value.WhichOneof("parameter_choice")
        if which is not None:
            found[name] = getattr(value, which)
    return found
