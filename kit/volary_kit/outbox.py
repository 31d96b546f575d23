"""Events leave exactly when their transaction commits: a row first, a stream entry after.

`add` writes a row and a notification that Postgres delivers at commit; the relay, one per
replica, listens for it, appends the rows to their streams and deletes them. A crash in between
publishes an event again, with the same id: consumers dedupe by it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg
import sqlalchemy as sa
from prometheus_client import Counter, Gauge
from sqlalchemy import text
from volary.events.v1 import event_pb2

from volary_kit import telemetry
from volary_kit.database import BROKEN, Database, Transaction
from volary_kit.errors import VolaryError
from volary_kit.streams import Publisher

log = logging.getLogger(__name__)

BATCH = 256
LOOK_AFTER_S = 1.0  # without a notification: after a restart, or a listener that was cut off
RETRY_S = 0.2
CHANNEL = "volary_outbox."  # and the schema
OUTBOX = sa.table(
    "kit_outbox",
    sa.column("stream", sa.Text),
    sa.column("event_id", sa.Text),
    sa.column("event", sa.LargeBinary),
)

RELAYED = Counter("volary_outbox_relayed_total", "Events moved from outbox to stream")
WAITING = Gauge("volary_outbox_waiting", "Rows found in the outbox at the last look")


async def add(transaction: Transaction, stream: str, event: event_pb2.Event) -> None:
    """Publish an event when the transaction commits; sets its id and trace where it has none."""
    if not event.id:
        event.id = str(uuid.uuid4())
    if not event.traceparent:
        event.traceparent = telemetry.traceparent()
    await transaction.execute(
        text(
            "WITH added AS (INSERT INTO kit_outbox (stream, event_id, event)"
            " VALUES (:stream, :event_id, :event))"
            " SELECT pg_notify(:channel || current_schema(), '')"
        ),
        {
            "channel": CHANNEL,
            "stream": stream,
            "event_id": event.id,
            "event": event.SerializeToString(),
        },
    )


def published_with(written: sa.CTE) -> sa.Select[Any]:
    """Return `written` as a statement that publishes an event for the row that it writes.

    For `Database.at_once`, with `event_values` among its values: it gives a row if something was
    written, and none if not.
    """
    values = sa.select(
        *(sa.bindparam(f"outbox_{c.name}", type_=c.type) for c in OUTBOX.c)
    ).select_from(written)
    added = sa.insert(OUTBOX).from_select(OUTBOX.c.keys(), values).cte("added")
    channel = sa.literal(CHANNEL).concat(sa.func.current_schema())
    return sa.select(sa.func.pg_notify(channel, "")).select_from(written).add_cte(added)


def event_values(stream: str, event: event_pb2.Event) -> dict[str, Any]:
    """Return the event of a `published_with` as its values; sets its id and trace if missing."""
    event.id = event.id or str(uuid.uuid4())
    event.traceparent = event.traceparent or telemetry.traceparent()
    return {
        "outbox_stream": stream,
        "outbox_event_id": event.id,
        "outbox_event": event.SerializeToString(),
    }


async def add_all(transaction: Transaction, stream: str, events: Sequence[event_pb2.Event]) -> None:
    """Publish events in order when the transaction commits: `add` for many, in one statement."""
    traceparent = telemetry.traceparent()
    for event in events:
        event.id = event.id or str(uuid.uuid4())
        event.traceparent = event.traceparent or traceparent
    await transaction.execute(
        text(
            "WITH added AS (INSERT INTO kit_outbox (stream, event_id, event)"
            " SELECT :stream, e.id, e.event"
            " FROM unnest(CAST(:ids AS text[]), CAST(:events AS bytea[]))"
            " WITH ORDINALITY AS e(id, event, place) ORDER BY e.place)"
            " SELECT pg_notify(:channel || current_schema(), '')"
        ),
        {
            "channel": CHANNEL,
            "stream": stream,
            "ids": [event.id for event in events],
            "events": [event.SerializeToString() for event in events],
        },
    )


class Relay:
    """Moves the outbox of one service to its streams."""

    def __init__(self, database: Database, publisher: Publisher) -> None:
        self._database = database
        self._publisher = publisher
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Move rows as they are committed, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._relay())

    async def step(self) -> int:
        """Move one batch in order of insertion; return how many rows that were."""
        async with self._database.transaction() as transaction:
            # one relay at a time keeps the order; it waits at most as long as a lock may
            await transaction.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), 1))")
            )
            found = await transaction.execute(
                text(
                    "SELECT position, stream, event FROM kit_outbox ORDER BY position LIMIT :rows"
                ),
                {"rows": BATCH},
            )
            rows = found.all()
            if rows:
                await self._publisher.publish_bytes([(r.stream, bytes(r.event)) for r in rows])
                await transaction.execute(
                    text("DELETE FROM kit_outbox WHERE position = ANY(:positions)"),
                    {"positions": [row.position for row in rows]},
                )
        RELAYED.inc(len(rows))
        WAITING.set(len(rows))
        return len(rows)

    async def _relay(self) -> None:
        while True:
            self._wake.clear()
            try:
                while await self.step():
                    pass
            except VolaryError as error:
                log.warning("the outbox waits: %s", error.reason)
                await asyncio.sleep(RETRY_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AFTER_S):
                    await self._wake.wait()

    async def _listen(self) -> None:
        """Hold a connection of its own that is told of commits; make it again when it breaks."""
        while True:
            try:
                await self._listen_once()
            except (*BROKEN, TimeoutError, asyncpg.PostgresError) as error:
                log.warning("the outbox is not told of commits: %s", type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _listen_once(self) -> None:
        url = self._database.url.replace("postgresql+asyncpg", "postgresql", 1)
        connection = await asyncpg.connect(url, timeout=5)
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _connection: ended.set())
        try:
            await connection.add_listener(
                f"{CHANNEL}{self._database.schema}", lambda *_notice: self._wake.set()
            )
            self._wake.set()
            await ended.wait()
        finally:
            connection.terminate()
