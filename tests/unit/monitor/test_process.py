"""The monitor as a process of its own: it starts alone, and survives a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import polars as pl
from monitor_rig import START_US, prediction
from redis.asyncio import Redis
from sqlalchemy import text
from volary_cli.launcher.engines import free_port
from volary_kit.streams import PREDICTIONS, Publisher
from volary_kit.testing import eventually

COUNT = 3_000


@asynccontextmanager
async def process(
    url: str, redis_url: str, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    env = os.environ | {
        "VOLARY_MONITOR_PORT": str(free_port()),
        "VOLARY_MONITOR_METRICS_PORT": str(free_port()),
        "VOLARY_MONITOR_DATABASE_URL": url.replace("+asyncpg", ""),
        "VOLARY_MONITOR_REDIS_URL": redis_url,
        "VOLARY_MONITOR_DATA_DIR": str(folder),
        "VOLARY_MONITOR_DRAIN_DELAY_S": "0",
        "VOLARY_MONITOR_LOG_ROWS": "500",
        "VOLARY_MONITOR_LOG_AGE_S": "0.5",
    }
    with (folder / "log").open("ab") as log:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "volary_monitor", env=env, stderr=log
        )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        await running.wait()


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
