"""The hook by which a repeated unary call gets the reply of the first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from google.protobuf.message import Message

from volary_kit.calls import Call

REQUEST_ID = "request_id"


class ReplyLedger(Protocol):
    """Remember replies under (project, method, request id)."""

    async def once(
        self,
        call: Call,
        request: Message,
        reply_type: type[Message],
        proceed: Callable[[], Awaitable[Message]],
    ) -> Message:
        """Return the stored reply, else run `proceed` and store what it returns."""
        ...


def is_remembered(call: Call) -> bool:
    """Say whether the row of this call promises one effect per request id."""
    return call.policy.idempotency == REQUEST_ID and call.policy.is_unary
