"""Events leave if and only if their transaction commits, at once, in order."""

from __future__ import annotations

import asyncio
import time

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from volary.events.v1 import event_pb2
from volary_kit import outbox
from volary_kit.database import Database
from volary_kit.errors import Unavailable
from volary_kit.outbox import Relay
from volary_kit.streams import FIELD, Publisher

STREAM = "test:outbox"


@pytest.fixture
def relay(database: Database, redis: Redis) -> Relay:
    return Relay(database, Publisher(redis))


async def add(database: Database, *ids: str) -> None:
    async with database.transaction() as transaction:
        for name in ids:
            await outbox.add(transaction, STREAM, event_pb2.Event(id=name))


async def published(redis: Redis) -> list[str]:
    rows = await redis.xrange(STREAM)
    return [event_pb2.Event.FromString(fields[FIELD]).id for _, fields in rows]


async def waiting(database: Database) -> int:
    async with database.read() as transaction:
        return int(await transaction.scalar(text("SELECT count(*) FROM kit_outbox")) or 0)


async def test_committed_events_are_published_in_order_and_forgotten(database, redis, relay):
    await add(database, "1", "2")
    await add(database, "3")
    assert await relay.step() == 3
    assert await published(redis) == ["1", "2", "3"]
    assert (await waiting(database), await relay.step()) == (0, 0)


async def test_event_of_a_transaction_that_rolls_back_never_leaves(database, redis, relay):
    with pytest.raises(RuntimeError):
        async with database.transaction() as transaction:
            await outbox.add(transaction, STREAM, event_pb2.Event(id="1"))
            raise RuntimeError
    assert await relay.step() == 0
    assert await published(redis) == []


async def test_crash_between_publishing_and_forgetting_repeats_the_same_id(database, redis):
    class Crash(Exception):
        pass

    class CrashingPublisher(Publisher):
        async def publish_bytes(self, entries) -> None:
            await super().publish_bytes(entries)
            raise Crash

    await add(database, "1")
    with pytest.raises(Crash):
        await Relay(database, CrashingPublisher(redis)).step()
    await Relay(database, Publisher(redis)).step()
    assert await published(redis) == ["1", "1"]


async def test_stream_that_is_away_loses_nothing(database, redis, relay):
    await add(database, "1")
    nowhere = Redis(port=1)
    with pytest.raises(Unavailable):
        await Relay(database, Publisher(nowhere)).step()
    await nowhere.aclose()
    await relay.step()
    assert await published(redis) == ["1"]


async def test_event_without_id_gets_one(database, redis, relay):
    event = event_pb2.Event()
    async with database.transaction() as transaction:
        await outbox.add(transaction, STREAM, event)
    await relay.step()
    assert await published(redis) == [event.id]
    assert event.id


async def test_two_relays_keep_the_order_and_publish_once(database, redis):
    relays = [Relay(database, Publisher(redis)) for _ in range(2)]
    names = [str(number) for number in range(600)]
    await add(database, *names)
    while any(await asyncio.gather(*(relay.step() for relay in relays))):
        pass
    assert await published(redis) == names


async def test_running_relay_is_woken_by_the_commit(database, redis, relay):
    """Without the notification the next look would be a second away."""
    running = asyncio.create_task(relay.run())
    await add(database, "warm")
    await until(redis, 1)
    delays_s = []
    for number in range(2, 12):
        await add(database, str(number))
        began_s = time.monotonic()
        await until(redis, number)
        delays_s.append(time.monotonic() - began_s)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert sorted(delays_s)[5] < 0.05


async def test_running_relay_outlives_its_connections(database, redis, relay):
    running = asyncio.create_task(relay.run())
    await add(database, "1")
    await until(redis, 1)
    async with database.transaction() as transaction:
        await transaction.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )
    await add(database, "2")
    async with asyncio.timeout(10):
        while list(dict.fromkeys(await published(redis))) != ["1", "2"]:  # "1" may come twice
            await asyncio.sleep(0.002)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def until(redis: Redis, length: int) -> None:
    async with asyncio.timeout(10):
        while await redis.xlen(STREAM) < length:
            await asyncio.sleep(0.002)


async def test_statement_of_its_own_publishes_for_the_row_that_it_writes(database, redis, relay):
    async with database.transaction() as transaction:
        await transaction.execute(text("CREATE TABLE lamp (name text PRIMARY KEY, turn int)"))
    lamp = sa.table("lamp", sa.column("name", sa.Text), sa.column("turn", sa.Integer))

    async def turn(before: int) -> bool:
        statement = insert(lamp).values(name="hall", turn=before + 1)
        written = statement.on_conflict_do_update(
            index_elements=["name"], set_={"turn": before + 1}, where=lamp.c.turn == before
        )
        event = outbox.event_values(STREAM, event_pb2.Event(id=str(before + 1)))
        cte = written.returning(lamp.c.turn).cte("written")
        return bool(await database.at_once(outbox.published_with(cte), event))

    assert [await turn(0), await turn(0), await turn(1)] == [True, False, True]
    assert await relay.step() == 2
    assert await published(redis) == ["1", "2"]


async def test_statement_of_its_own_is_apart_from_a_failing_transaction(database, redis, relay):
    one = sa.select(sa.literal(1).label("one")).cte("written")
    with pytest.raises(RuntimeError):
        async with database.enlisting():
            event = outbox.event_values(STREAM, event_pb2.Event(id="1"))
            await database.at_once(outbox.published_with(one), event)
            raise RuntimeError
    await relay.step()
    assert await published(redis) == ["1"]
