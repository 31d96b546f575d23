"""How large a request may be, per method."""

from __future__ import annotations

from volary_kit.calls import Call
from volary_kit.errors import ResourceExhausted


def check_size(call: Call, data: bytes) -> None:
    """Raise ResourceExhausted, gRPC's own code for it, when one message is too large."""
    limit = call.policy.max_request_bytes
    if len(data) > limit:
        raise ResourceExhausted(
            "REQUEST_TOO_LARGE",
            f"a request message has {len(data)} bytes, {call.method} takes {limit}",
            {"bytes": str(len(data)), "max_bytes": str(limit)},
        )
