from __future__ import annotations

import asyncio
from typing import Any

import redis as blocking_redis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from volary.events.v1 import event_pb2
from volary_inference.domain.events import EventRing, PredictionRecord
from volary_inference.domain.predictions import About, Origin, VersionKey
from volary_inference.domain.versions import Versions
from volary_inference.lifecycle.residence import Bounds, Residence
from volary_inference.measures import EngineCollector
from volary_inference.stream import PredictionStream
from volary_kit.testing import ManualClock
from volary_kit.timestamps import to_us

KEY = VersionKey("p", "m", 2)


def record(n: int) -> PredictionRecord:
    about = About(subject=f"s{n}", feature_watermark_us=7)
    return PredictionRecord(f"key-{n}", KEY, "d", "model", Origin("key"), about, n, 1_000 + n)


class Flaky:
    """A Redis client whose first appends fail, before or after they took effect."""

    def __init__(self, client: blocking_redis.Redis, failures: list[str]) -> None:
        self._client = client
        self.failures = failures

    def register_script(self, text: str) -> Any:
        script = self._client.register_script(text)

        def flaky(**arguments: Any) -> Any:
            failure = self.failures.pop(0) if self.failures else ""
            if failure == "before":
                raise RedisConnectionError("gone")
            result = script(**arguments)
            if failure == "after":
                raise RedisConnectionError("gone")
            return result

        return flaky


async def ids(redis: Redis) -> list[str]:
    entries = await redis.xrange("volary:predictions")
    return [event_pb2.Event.FromString(fields[b"e"]).id for _, fields in entries]


async def test_nothing_is_lost_while_redis_is_away_and_repeats_keep_their_id(
    redis: Redis, redis_url: str
) -> None:
    ring = EventRing(100)
    client: Any = Flaky(blocking_redis.Redis.from_url(redis_url), ["before", "before", "after"])
    for n in range(3):
        assert ring.offer(record(n))
    stream = PredictionStream(ring, client)
    stream.start()
    await asyncio.to_thread(stream.close, 30)
    assert not client.failures
    assert len(ring) == 0
    once = ["key-0", "key-1", "key-2"]
    assert await ids(redis) == once + once  # the append that failed afterwards came twice


async def test_an_event_carries_what_its_consumers_join_by(redis: Redis, redis_url: str) -> None:
    ring = EventRing(100)
    stream = PredictionStream(ring, blocking_redis.Redis.from_url(redis_url))
    stream.start()
    ring.offer(record(5))
    await asyncio.to_thread(stream.close, 30)
    [(_, fields)] = await redis.xrange("volary:predictions")
    event = event_pb2.Event.FromString(fields[b"e"])
    assert (event.project, to_us(event.event_time), to_us(event.known_at)) == ("p", 5, 5)
    prediction = event.prediction
    assert (prediction.model, prediction.version, prediction.subject) == ("m", 2, "s5")
    assert to_us(prediction.replied_at) == 1_005
    assert to_us(prediction.feature_watermark) == 7


def test_the_metrics_count_what_the_ring_dropped() -> None:
    ring = EventRing(1)
    ring.offer(record(1))
    ring.offer(record(2))
    none = Residence(Bounds(), ManualClock(), lambda _: False)
    samples = {
        sample.name: sample.value
        for metric in EngineCollector(Versions(), ring, none).collect()
        for sample in metric.samples
    }
    assert samples["volary_prediction_events_dropped_total"] == 1
    assert samples["volary_prediction_events_queued"] == 1
