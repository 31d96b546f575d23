"""What both adapters read from a gRPC context, and how replies become bytes."""

from __future__ import annotations

import random
from typing import Any, Protocol

from google.protobuf.message import Message

from volary_kit.calls import Call
from volary_kit.clock import Clock
from volary_kit.registration import Method

REQUEST_KEY = "x-request-id"
MAX_KEY = 128
PROBE = "/grpc.health.v1.Health/"
VERSION_MASK = ~(0xF << 76 | 0x3 << 62)
VERSION_4 = 4 << 76 | 0x2 << 62
NO_DEADLINE_S = 1e9  # gRPC tells "none" as infinity or as centuries, by server


class CallContext(Protocol):
    """The part of both gRPC contexts that a call is made from."""

    def invocation_metadata(self) -> Any:
        """Return the metadata that came with the call."""
        ...

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline."""
        ...


def begin(method: Method, context: CallContext, clock: Clock) -> Call:
    """Return the call that a gRPC context stands for, before any rule has seen it."""
    now_s = clock.monotonic_s()
    metadata = dict(context.invocation_metadata() or ())
    left_s = context.time_remaining()
    deadline_s = None if left_s is None or left_s > NO_DEADLINE_S else now_s + left_s
    key = metadata.get(REQUEST_KEY)
    return Call(
        method=method.name,
        policy=method.policy,
        metadata=metadata,
        client_deadline_s=deadline_s,
        started_s=now_s,
        request_key=key[:MAX_KEY] if isinstance(key, str) and key else new_key(),
        clock=clock,
    )


def new_key() -> str:
    """Return a random UUID. It guards nothing: a caller could have sent any other."""
    text = f"{random.getrandbits(128) & VERSION_MASK | VERSION_4:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def to_bytes(reply: Message | bytes) -> bytes:
    """Serialize a reply; bytes pass, so that a handler may also write to its context."""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()
