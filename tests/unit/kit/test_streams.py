"""Consumer groups on a real Redis: order, crashes, poison, trouble that passes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis
from volary.events.v1 import event_pb2
from volary_kit.errors import InvalidArgument, Unavailable
from volary_kit.streams import FIELD, ConsumerGroup, Publisher, lag

STREAM = "test:events"


class Inbox:
    """A handler that keeps what it gets, and fails as it is told."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.poison: set[str] = set()
        self.away = 0

    async def __call__(self, events: Sequence[event_pb2.Event]) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("DOWN", "for now")
        if any(event.id in self.poison for event in events):
            raise InvalidArgument("POISON", "never")
        self.ids += [event.id for event in events]


def group(redis: Redis, inbox: Inbox, consumer: str = "a", **options) -> ConsumerGroup:
    options = {"backoff_s": (0.001, 0.002), "max_attempts": 3} | options
    return ConsumerGroup(redis, STREAM, "readers", consumer, inbox, **options)


async def publish(redis: Redis, *ids: str) -> None:
    await Publisher(redis).publish(STREAM, *(event_pb2.Event(id=name) for name in ids))


async def test_events_come_once_and_in_order_also_those_from_before_the_group(redis: Redis):
    inbox = Inbox()
    await publish(redis, "1", "2")
    readers = group(redis, inbox)
    assert await readers.drain() == 2
    await publish(redis, "3")
    assert await readers.drain() == 1
    assert await readers.drain() == 0
    assert inbox.ids == ["1", "2", "3"]
    assert await lag(redis, STREAM, "readers") == (0.0, 0)


async def test_two_consumers_of_a_group_share_and_two_groups_do_not(redis: Redis):
    first, second, other = Inbox(), Inbox(), Inbox()
    a, b = group(redis, first, "a", batch=1), group(redis, second, "b", batch=1)
    elsewhere = ConsumerGroup(redis, STREAM, "others", "a", other)
    await publish(redis, "1", "2")
    assert (await a.step(), await b.step(), await elsewhere.drain()) == (1, 1, 2)
    assert (first.ids, second.ids, other.ids) == (["1"], ["2"], ["1", "2"])


async def test_what_a_dead_consumer_held_is_claimed(redis: Redis):
    inbox = Inbox()
    await publish(redis, "1", "2")
    await redis.xgroup_create(STREAM, "readers", id="0")
    await redis.xreadgroup("readers", "dead", {STREAM: ">"})
    assert await group(redis, inbox, "alive", claim_after_ms=600_000).drain() == 0
    assert await group(redis, inbox, "alive", claim_after_ms=0).step() == 2
    assert inbox.ids == ["1", "2"]


async def test_restarted_consumer_takes_up_what_it_had_not_acknowledged(redis: Redis):
    inbox = Inbox()
    await publish(redis, "1", "2")
    await redis.xgroup_create(STREAM, "readers", id="0")
    await redis.xreadgroup("readers", "a", {STREAM: ">"}, count=1)
    await group(redis, inbox).drain()
    assert inbox.ids == ["1", "2"]
    assert (await redis.xpending(STREAM, "readers"))["pending"] == 0


async def test_poison_goes_to_the_dead_letters_and_its_batch_mates_do_not(redis: Redis):
    inbox = Inbox()
    inbox.poison = {"2"}
    readers = group(redis, inbox)
    await publish(redis, "1", "2", "3")
    await readers.drain()
    assert inbox.ids == ["1", "3"]
    ((_, fields),) = await redis.xrange(readers.dead_letters)
    assert event_pb2.Event.FromString(fields[FIELD]).id == "2"
    assert fields[b"reason"] == b"refused"
    assert (await redis.xpending(STREAM, "readers"))["pending"] == 0


async def test_malformed_entry_goes_to_the_dead_letters(redis: Redis):
    inbox = Inbox()
    await redis.xadd(STREAM, {FIELD: b"\xff\xff"})
    await redis.xadd(STREAM, {"other": "field"})
    await publish(redis, "1")
    readers = group(redis, inbox)
    await readers.drain()
    assert inbox.ids == ["1"]
    assert await redis.xlen(readers.dead_letters) == 2


async def test_trouble_that_passes_is_waited_out_with_the_batch_whole(redis: Redis):
    inbox = Inbox()
    inbox.away = 7
    readers = group(redis, inbox)
    await publish(redis, "1", "2")
    await readers.drain()
    assert (inbox.ids, inbox.away) == (["1", "2"], 0)
    assert await redis.xlen(readers.dead_letters) == 0


async def test_consumer_survives_a_flush(redis: Redis):
    inbox = Inbox()
    readers = group(redis, inbox)
    await publish(redis, "1")
    await readers.drain()
    await redis.flushall()
    await publish(redis, "2")
    await readers.step()
    await readers.drain()
    assert inbox.ids == ["1", "2"]


async def test_running_consumer_is_woken_by_an_event(redis: Redis):
    inbox = Inbox()
    readers = group(redis, inbox, block_ms=5_000)
    running = asyncio.create_task(readers.run())
    await publish(redis, "1")
    async with asyncio.timeout(2):
        while inbox.ids != ["1"]:
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)  # it would meet the next test's stream


async def test_length_is_bounded(redis: Redis):
    publisher = Publisher(redis, max_length=100)
    for start in range(0, 1_000, 100):
        names = range(start, start + 100)
        await publisher.publish(STREAM, *(event_pb2.Event(id=str(n)) for n in names))
    assert await redis.xlen(STREAM) < 300


async def test_lag_is_seconds_between_delivered_and_newest(redis: Redis):
    await redis.xadd(STREAM, {FIELD: b""}, id="1000-0")
    await redis.xgroup_create(STREAM, "readers", id="0")
    await redis.xreadgroup("readers", "a", {STREAM: ">"})
    await redis.xadd(STREAM, {FIELD: b""}, id="3500-0")
    assert await lag(redis, STREAM, "readers") == (2.5, 1)


async def test_publishing_to_nowhere_is_unavailable():
    nowhere = Redis(port=1)
    with pytest.raises(Unavailable):
        await Publisher(nowhere).publish(STREAM, event_pb2.Event(id="1"))
    await nowhere.aclose()
