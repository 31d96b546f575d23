"""Prediction events from the ring to `volary:predictions`, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import redis
from redis.exceptions import RedisError
from volary.events.v1 import event_pb2
from volary_kit import telemetry
from volary_kit.streams import FIELD, MAX_LENGTH, PREDICTIONS
from volary_kit.telemetry import names
from volary_kit.timestamps import duration_from_us, from_us

from volary_inference.domain.events import EventRing, PredictionRecord

log = logging.getLogger(__name__)
BATCH = 256
WAIT_S = 1.0
RETRY_S = (0.05, 2.0)
LINGER_S = 0.02  # a round trip costs the same for one event as for many
REDIS_TIMEOUT_S = 2.0


# one reply for a whole batch: to read 512 of them costs more than to send the events
APPEND = """
for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', ARGV[2], ARGV[i])
end
return #ARGV - 2
"""


def append_to(client: redis.Redis, stream: str) -> Callable[[Sequence[bytes]], object]:
    """Return what appends events to a stream in one round trip; raises what the client does."""
    script = client.register_script(APPEND)
    return lambda events: script(keys=[stream], args=[MAX_LENGTH, FIELD, *events])


def redis_client(url: str) -> redis.Redis:
    """Return a client that gives up in time to be asked again."""
    return redis.Redis.from_url(
        url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    )


class PredictionStream:
    """Appends what the ring holds; trouble with Redis is waited out, the ring then fills."""

    def __init__(self, ring: EventRing, client: redis.Redis, stream: str = PREDICTIONS) -> None:
        self._ring = ring
        self._append_all = append_to(client, stream)
        self._stream = stream
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prediction events", daemon=True)

    def start(self) -> None:
        """Begin to flush."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Flush what is left, within `timeout_s`."""
        self._ring.close()
        self._thread.join(timeout_s)
        self._stopping.set()
        self._thread.join(RETRY_S[1])

    def _work(self) -> None:
        wait_s, longest_s = RETRY_S
        while not self._stopping.is_set():
            records = self._ring.peek(BATCH, WAIT_S)
            if not records:
                if self._ring.is_closed:
                    return
                continue
            try:
                self._append(records)
            except (RedisError, OSError) as error:
                log.warning("prediction events wait: %s", type(error).__name__)
                self._stopping.wait(wait_s)
                wait_s = min(longest_s, wait_s * 2)
            else:
                self._ring.discard(len(records))
                wait_s = RETRY_S[0]
                if len(records) < BATCH and not self._ring.is_closed:
                    self._stopping.wait(LINGER_S)

    def _append(self, records: Sequence[PredictionRecord]) -> None:
        """Append in one round trip; what is sent twice has the same event id."""
        events: list[bytes] = []
        name = f"publish {self._stream}"
        attributes = {names.MESSAGING_SYSTEM: "redis", names.MESSAGING_STREAM: self._stream}
        for record in records:
            parent = {telemetry.TRACEPARENT: record.origin.traceparent}
            with telemetry.span(name, attributes, kind="producer", parent=parent, is_current=False):
                events.append(event_of(record).SerializeToString())
        self._append_all(events)


def event_of(record: PredictionRecord) -> event_pb2.Event:
    """Write a record as the event that every consumer reads."""
    about, origin = record.about, record.origin
    watermark = about.feature_watermark_us
    return event_pb2.Event(
        id=record.id,
        project=record.key.project,
        event_time=from_us(record.event_time_us),
        # a prediction is known at the instant that it is for: both are of the world's clock
        known_at=from_us(record.event_time_us),
        traceparent=origin.traceparent,
        prediction=event_pb2.PredictionEvent(
            prediction_id=record.id,
            request_key=origin.request_key,
            model=record.key.model,
            version=record.key.version,
            digest=record.digest,
            tier=record.tier,
            route=origin.route,
            shadow=origin.is_shadow,
            subject=about.subject,
            entity_keys=dict(about.entity_keys),
            feature_set=about.feature_set,
            schema_hash=about.schema_hash,
            features=record.features,
            outputs=record.outputs,
            confidence=record.confidence or 0.0,
            latency=duration_from_us(record.latency_us),
            queue_time=duration_from_us(record.queue_us),
            batch_size=record.batch_size,
            code=record.code,
            trace_id=origin.trace_id,
            replied_at=from_us(record.replied_at_us),
            feature_watermark=None if watermark is None else from_us(watermark),
            reason_codes=() if record.decision is None else record.decision.reason_codes,
            action="" if record.decision is None else record.decision.action,
        ),
    )
