"""One effect per request id: the reply is stored in the transaction that makes the effect.

The key is (project, method, request id). While the first call runs it holds an advisory lock
of its transaction, which dies with it: nothing is left to clean up after a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.protobuf.message import Message
from sqlalchemy import text

from volary_kit.calls import Call
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import Aborted, InvalidArgument, Unavailable

log = logging.getLogger(__name__)

KEPT_US = 24 * 3_600 * 1_000_000
RETRY_AFTER_S = 0.1
CLEAN_EVERY_S = 600.0
CLEAN_ROWS = 10_000


@dataclass(frozen=True)
class _Key:
    project: str
    method: str
    request_id: str
    request_hash: bytes

    def row(self) -> dict[str, str]:
        return {"project": self.project, "method": self.method, "request_id": self.request_id}


class PostgresLedger:
    """Remember replies in the table `kit_replies` of the service's own schema."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def once(
        self,
        call: Call,
        request: Message,
        reply_type: type[Message],
        proceed: Callable[[], Awaitable[Message]],
    ) -> Message:
        """Return the stored reply, else run `proceed` and store what it returns.

        Raises InvalidArgument `REQUEST_ID_REUSED` for another body under the same id and
        Aborted `REQUEST_RUNNING` while the first call runs.
        """
        key = _key(call, request)
        if not key.request_id:
            return await proceed()
        try:
            return await self._once(key, reply_type, proceed)
        except Unavailable as error:
            if error.reason != "OUTCOME_UNKNOWN":
                raise
            stored = await self._read_back(key)
            if stored is None:
                raise
            return reply_type.FromString(stored)

    async def _once(
        self, key: _Key, reply_type: type[Message], proceed: Callable[[], Awaitable[Message]]
    ) -> Message:
        async with self._database.enlisting() as transaction:
            await _lock(transaction, key)
            stored = await self._stored(transaction, key)
            if stored is not None:
                return reply_type.FromString(stored)
            reply = await proceed()
            await self._store(transaction, key, reply)
        return reply

    async def _read_back(self, key: _Key) -> bytes | None:
        """Return the reply if a commit of unknown outcome turns out to have happened."""
        async with self._database.transaction() as transaction:
            await _lock(transaction, key)
            return await self._stored(transaction, key)

    async def _stored(self, transaction: Transaction, key: _Key) -> bytes | None:
        found = await transaction.execute(
            text(
                "SELECT request_hash, reply FROM kit_replies WHERE project = :project"
                " AND method = :method AND request_id = :request_id AND replied_us > :oldest"
            ),
            key.row() | {"oldest": self._clock.now_us() - KEPT_US},
        )
        row = found.one_or_none()
        if row is None:
            return None
        if bytes(row.request_hash) != key.request_hash:
            raise InvalidArgument(
                "REQUEST_ID_REUSED",
                "this request id was used for another request",
                {"request_id": key.request_id},
                field="request_id",
            )
        return bytes(row.reply)

    async def _store(self, transaction: Transaction, key: _Key, reply: Message) -> None:
        await transaction.execute(
            text(
                "INSERT INTO kit_replies"
                " (project, method, request_id, request_hash, reply, replied_us)"
                " VALUES (:project, :method, :request_id, :request_hash, :reply, :replied_us)"
                " ON CONFLICT (project, method, request_id) DO UPDATE SET"
                " request_hash = excluded.request_hash, reply = excluded.reply,"
                " replied_us = excluded.replied_us"  # only an expired row is still there
            ),
            key.row()
            | {
                "request_hash": key.request_hash,
                "reply": reply.SerializeToString(),
                "replied_us": self._clock.now_us(),
            },
        )

    async def forget_expired(self) -> int:
        """Delete replies older than 24 h, at most `CLEAN_ROWS`; return how many went."""
        async with self._database.transaction() as transaction:
            gone = await transaction.execute(
                text(
                    "DELETE FROM kit_replies WHERE ctid IN (SELECT ctid FROM kit_replies"
                    " WHERE replied_us <= :oldest LIMIT :rows)"
                ),
                {"oldest": self._clock.now_us() - KEPT_US, "rows": CLEAN_ROWS},
            )
            return int(gone.rowcount)  # pyright: ignore[reportAttributeAccessIssue]

    async def run(self) -> None:
        """Forget expired replies every ten minutes, for ever."""
        while True:
            try:
                await self.forget_expired()
            except Unavailable:
                log.warning("expired replies stay: the database cannot be reached")
            await asyncio.sleep(CLEAN_EVERY_S)


def _key(call: Call, request: Message) -> _Key:
    request_id = getattr(request, "request_id", "")
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return _Key(call.project, call.method, request_id, digest)


async def _lock(transaction: Transaction, key: _Key) -> None:
    name = f"volary.reply\0{key.project}\0{key.method}\0{key.request_id}"
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    got = await transaction.scalar(
        text("SELECT pg_try_advisory_xact_lock(:number)"), {"number": number}
    )
    if not got:
        raise Aborted(
            "REQUEST_RUNNING",
            "a call with this request id is still running",
            {"request_id": key.request_id},
            retry_after_s=RETRY_AFTER_S,
        )
