"""The monitor as a process of its own: it starts alone, and survives a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import polars as pl
from monitor_rig import START_US, prediction, process
from redis.asyncio import Redis
from sqlalchemy import text
from volary_kit.streams import PREDICTIONS, Publisher
from volary_kit.testing import eventually

COUNT = 3_000


async def test_kill_in_the_middle_loses_and_doubles_nothing(
    make_database, redis: Redis, redis_url: str, tmp_path: Path
):
    database = await make_database("monitor")
    events = [prediction(str(i), START_US + i) for i in range(COUNT)]
    publisher = Publisher(redis)

    async def stored() -> int:
        async with database.read() as transaction:
            return int(await transaction.scalar(text("SELECT count(*) FROM predictions")) or 0)

    async def some() -> bool:
        return await stored() > 0

    async def all_logged() -> bool:
        async with database.read() as transaction:
            rows = await transaction.scalar(text("SELECT sum(rows) FROM log_files"))
        return int(rows or 0) == COUNT

    async with process(database.url, redis_url, tmp_path) as first:
        await publisher.publish(PREDICTIONS, *events[:2_000])
        await eventually(some, within_s=120, what="the first predictions")
        first.kill()
        await first.wait()
    async with process(database.url, redis_url, tmp_path) as second:
        await publisher.publish(PREDICTIONS, *events[1_000:])  # half of them again
        await eventually(all_logged, within_s=120, what="the whole log")
        assert await stored() == COUNT
        second.send_signal(signal.SIGTERM)
        assert await second.wait() == 0
    async with database.read() as transaction:
        files = await transaction.scalars(text("SELECT path FROM log_files"))
    frame = pl.concat([pl.read_parquet(tmp_path / "predictions" / name) for name in files])
    assert sorted(frame["event_id"]) == sorted(event.id for event in events)
