"""The contract as data: the descriptors of every RPC and one policy row for each."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import TypedDict


class MethodRow(TypedDict):
    """One row of `methods.json`; a deadline of 0 means none is set."""

    allow: list[str]
    default_deadline_ms: int
    max_deadline_ms: int
    unbounded: bool
    idempotency: str
    max_request_bytes: int
    route_field: str
    edge: bool
    client_streaming: bool
    server_streaming: bool


@cache
def descriptor_set() -> bytes:
    """Return the serialized `google.protobuf.FileDescriptorSet`, imports included."""
    return (resources.files(__name__) / "contract.binpb").read_bytes()


@cache
def methods() -> dict[str, MethodRow]:
    """Return the policy row of each RPC, keyed by `/package.Service/Method`."""
    text = (resources.files(__name__) / "methods.json").read_text()
    rows: dict[str, MethodRow] = json.loads(text)
    return rows
