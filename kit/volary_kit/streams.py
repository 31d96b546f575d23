"""Redis Streams: publish events, consume them in a group; at least once, bounded, observable.

One entry is one field `e` with a serialized `volary.events.v1.Event`. The interface names no
Redis, so that another log of events fits behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from volary.events.v1 import event_pb2

from volary_kit import errors, telemetry
from volary_kit.telemetry import names

log = logging.getLogger(__name__)

PREDICTIONS = "volary:predictions"
SOURCE_EVENTS = "volary:source_events"
TRAFFIC_EVENTS = "volary:traffic_events"
ALERTS = "volary:alerts"

FIELD = b"e"
MAX_LENGTH = 500_000  # of ~400 bytes each: 200 MB at most
MAX_DEAD = 10_000
BATCH = 256
BLOCK_MS = 1_000
CLAIM_AFTER_MS = 30_000
MAX_ATTEMPTS = 5
BACKOFF_S = (0.05, 5.0)
NO_GROUP = "NOGROUP"
MAX_LINKS = 32
MEASURE_EVERY_S = 1.0

PUBLISHED = Counter("volary_stream_published_total", "Events published", ["stream"])
CONSUMED = Counter("volary_stream_consumed_total", "Events handled", ["stream", "group"])
DEAD = Counter("volary_stream_dead_total", "Events given up", ["stream", "group"])
LAG_S = Gauge(
    "volary_stream_lag_seconds", "From the newest delivered to the newest", ["stream", "group"]
)
PENDING = Gauge("volary_stream_pending", "Delivered, not acknowledged", ["stream", "group"])

Handler = Callable[[Sequence[event_pb2.Event]], Awaitable[None]]
TRANSIENT = (
    errors.Unavailable,
    errors.Aborted,
    errors.DeadlineExceeded,
    errors.ResourceExhausted,
    RedisError,
    OSError,
)


class Publisher:
    """Append events to streams, each bounded in length."""

    def __init__(self, redis: Redis, *, max_length: int = MAX_LENGTH) -> None:
        self._redis = redis
        self._max_length = max_length

    async def publish(self, stream: str, *events: event_pb2.Event) -> None:
        """Append events in order; raise Unavailable when that is not known to have worked."""
        await self.publish_bytes([(stream, event.SerializeToString()) for event in events])

    async def publish_bytes(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Append serialized events in order, in one round trip."""
        if not entries:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for stream, data in entries:
            pipeline.xadd(stream, {FIELD: data}, maxlen=self._max_length, approximate=True)
        try:
            await pipeline.execute()
        except RedisError as error:
            raise errors.Unavailable(
                "STREAM_UNAVAILABLE", "events cannot be published", retry_after_s=0.2
            ) from error
        for stream, _data in entries:
            PUBLISHED.labels(stream).inc()


@dataclass(frozen=True)
class _Entry:
    id: bytes
    data: bytes | None


class ConsumerGroup:
    """One consumer of a group on one stream.

    `handler` gets events in order, in batches; when it returns they are acknowledged. It must
    tolerate an event that comes again (the same `id`). When it raises, a transient error of
    the tree is waited out with the batch whole; any other is narrowed down to the single event
    behind it, which is tried `max_attempts` times and then moved to `<stream>:dead:<group>`.
    Entries that a dead consumer left are claimed after `claim_after_ms`. `linger_s` is waited
    after a batch that was not full, for a consumer that would rather have fewer, larger ones.
    """

    def __init__(
        self,
        redis: Redis,
        stream: str,
        group: str,
        consumer: str,
        handler: Handler,
        *,
        batch: int = BATCH,
        block_ms: int = BLOCK_MS,
        claim_after_ms: int = CLAIM_AFTER_MS,
        max_attempts: int = MAX_ATTEMPTS,
        backoff_s: tuple[float, float] = BACKOFF_S,
        linger_s: float = 0.0,
    ) -> None:
        self._redis = redis
        self._stream, self._group, self._consumer = stream, group, consumer
        self._handler = handler
        self._batch, self._block_ms, self._claim_after_ms = batch, block_ms, claim_after_ms
        self._max_attempts, self._backoff_s = max_attempts, backoff_s
        self._linger_s = linger_s
        self._is_ready = False
        self._claim_at = self._measure_at = 0.0

    @property
    def dead_letters(self) -> str:
        """The stream of what was given up."""
        return f"{self._stream}:dead:{self._group}"

    async def run(self) -> None:
        """Consume for ever; trouble with Redis is waited out."""
        failures = 0
        while True:
            try:
                count = await self.step(block_ms=self._block_ms)
                failures = 0
                if 0 < count < self._batch:
                    await asyncio.sleep(self._linger_s)
            except (RedisError, OSError) as error:
                self._is_ready = False
                failures += 1
                log.warning("%s cannot be read: %s", self._stream, type(error).__name__)
                await asyncio.sleep(self._delay_s(failures))

    async def step(self, *, block_ms: int | None = None) -> int:
        """Handle one batch, waiting at most `block_ms` for it; return its number of events."""
        await self._make_ready()
        entries = await self._claimed() or await self._read(block_ms)
        if entries:
            await self._handle_all(entries)
        await self._measure()
        return len(entries)

    async def drain(self) -> int:
        """Handle what is there until nothing is left; return the number of events."""
        total = 0
        while count := await self.step():
            total += count
        return total

    async def _make_ready(self) -> None:
        """Create the group and take up what this consumer had not acknowledged before."""
        if self._is_ready:
            return
        try:
            await self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._is_ready = True
        while entries := await self._read_from(b"0", None):
            await self._handle_all(entries)

    async def _read(self, block_ms: int | None) -> list[_Entry]:
        try:
            return await self._read_from(b">", block_ms)
        except ResponseError as error:
            if NO_GROUP not in str(error):
                raise
            self._is_ready = False  # the stream was flushed; the group is made again
            return []

    async def _read_from(self, start: bytes, block_ms: int | None) -> list[_Entry]:
        reply: Any = await self._redis.xreadgroup(
            self._group, self._consumer, {self._stream: start}, count=self._batch, block=block_ms
        )
        return _entries(_rows(reply))

    async def _claimed(self) -> list[_Entry]:
        """Return entries that another consumer was given long ago and never acknowledged."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._claim_at:
            return []
        try:
            reply: Any = await self._redis.xautoclaim(
                self._stream,
                self._group,
                self._consumer,
                min_idle_time=self._claim_after_ms,
                count=self._batch,
            )
        except ResponseError as error:
            if NO_GROUP not in str(error):
                raise
            self._is_ready = False
            return []
        entries = _entries(reply[1])
        if not entries:
            self._claim_at = now_s + self._claim_after_ms / 2_000
        return entries

    async def _handle_all(self, entries: Sequence[_Entry]) -> None:
        events: list[tuple[_Entry, event_pb2.Event]] = []
        for entry in entries:
            event = _event(entry)
            if event is None:
                await self._give_up(entry, "malformed")
            else:
                events.append((entry, event))
        if events and not await self._try([event for _, event in events]):
            for entry, event in events:
                await self._handle_one(entry, event)
        if events:
            await self._acknowledge([entry for entry, _ in events])

    async def _handle_one(self, entry: _Entry, event: event_pb2.Event) -> None:
        for attempt in range(1, self._max_attempts + 1):
            if await self._try([event]):
                return
            await asyncio.sleep(self._delay_s(attempt))
        await self._give_up(entry, "refused")

    async def _try(self, events: list[event_pb2.Event]) -> bool:
        """Say whether the handler took the events; wait out transient errors."""
        failures = 0
        while True:
            try:
                with self._span(events):
                    await self._handler(events)
            except TRANSIENT as error:
                failures += 1
                log.warning("%s waits: %s", self._stream, telemetry.error_type(error))
                await asyncio.sleep(self._delay_s(failures))
            except Exception:  # a worker loop: one bad event must not end it
                log.exception("%s: a handler refused %d events", self._stream, len(events))
                return False
            else:
                CONSUMED.labels(self._stream, self._group).inc(len(events))
                return True

    def _span(self, events: list[event_pb2.Event]) -> Any:
        attributes: telemetry.Attributes = {
            names.MESSAGING_SYSTEM: "redis",
            names.MESSAGING_STREAM: self._stream,
            names.MESSAGING_GROUP: self._group,
            names.MESSAGING_BATCH: len(events),
        }
        if len(events) == 1 and events[0].traceparent:
            parent = {telemetry.TRACEPARENT: events[0].traceparent}
            return telemetry.span(
                f"consume {self._stream}", attributes, kind="consumer", parent=parent
            )
        links = [event.traceparent for event in events[:MAX_LINKS] if event.traceparent]
        return telemetry.span(f"consume {self._stream}", attributes, kind="consumer", links=links)

    async def _give_up(self, entry: _Entry, reason: str) -> None:
        log.error("%s: event %s goes to %s", self._stream, entry.id.decode(), self.dead_letters)
        fields: Any = {FIELD: entry.data or b"", b"reason": reason, b"id": entry.id}
        await self._redis.xadd(self.dead_letters, fields, maxlen=MAX_DEAD, approximate=True)
        DEAD.labels(self._stream, self._group).inc()
        await self._acknowledge([entry])

    async def _acknowledge(self, entries: Sequence[_Entry]) -> None:
        await self._redis.xack(self._stream, self._group, *[entry.id for entry in entries])

    async def _measure(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._measure_at:
            return
        self._measure_at = now_s + MEASURE_EVERY_S
        lag_s, pending = await lag(self._redis, self._stream, self._group)
        LAG_S.labels(self._stream, self._group).set(lag_s)
        PENDING.labels(self._stream, self._group).set(pending)

    def _delay_s(self, failures: int) -> float:
        first, longest = self._backoff_s
        return min(longest, first * 2 ** min(failures - 1, 16))


async def lag(redis: Redis, stream: str, group: str) -> tuple[float, int]:
    """Return how far a group is behind: seconds by entry ids, and entries not acknowledged.

    The seconds lie between the newest entry and the newest that was delivered.
    """
    pipeline = redis.pipeline(transaction=False)
    pipeline.xinfo_stream(stream)
    pipeline.xinfo_groups(stream)
    try:
        info, groups = await pipeline.execute()
    except ResponseError:
        return 0.0, 0
    for row in groups:
        if _text(row["name"]) == group:
            behind_ms = _millis(info["last-generated-id"]) - _millis(row["last-delivered-id"])
            is_new = _millis(row["last-delivered-id"]) == 0 and info["length"] == 0
            return (0.0 if is_new else max(0, behind_ms) / 1_000), int(row["pending"])
    return 0.0, 0


def _rows(reply: Any) -> Any:
    if not reply:
        return []
    if isinstance(reply, dict):
        (rows,) = reply.values()
        return rows[0] if rows and isinstance(rows[0], list) else rows
    return reply[0][1]


def _entries(rows: Any) -> list[_Entry]:
    # a trimmed entry is delivered again without its fields
    return [_Entry(row[0], (row[1] or {}).get(FIELD)) for row in rows if row[0] is not None]


def _event(entry: _Entry) -> event_pb2.Event | None:
    if entry.data is None:
        return None
    try:
        return event_pb2.Event.FromString(entry.data)
    except DecodeError:
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _millis(entry_id: Any) -> int:
    return int(_text(entry_id).partition("-")[0])
