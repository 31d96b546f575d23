"""A mesh on engines that exist already: none is started, and a project can be declared on them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
from volary_cli.launcher.engines import (
    PostgresEngine,
    RedisEngine,
    TemporalEngine,
    free_port,
    running,
)

PORT_BASE = 18_800
ROOT = Path(__file__).parents[2]
PASSWORD = "elsewhere"


async def volary(
    *words: str, env: Mapping[str, str], timeout_s: float = 150
) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "volary_cli", *words],
        cwd=ROOT, env=os.environ | env, text=True, capture_output=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """PostgreSQL, Redis and Temporal that no launcher started, as the environment names them."""
    postgres = PostgresEngine(tmp_path / "postgres", free_port(), PASSWORD)
    redis = RedisEngine(tmp_path / "redis", free_port(), PASSWORD)
    ports = free_port(), free_port(), free_port()
    temporal = TemporalEngine(tmp_path / "temporal", *ports, cache=tmp_path)
    async with AsyncExitStack() as stack:
        for engine in (postgres, redis, temporal):
            await stack.enter_async_context(running(engine, tmp_path / f"{engine.name}.log"))
        connection = await asyncpg.connect(postgres.url())
        await connection.execute("CREATE DATABASE ours")
        await connection.close()
        yield {
            "VOLARY_POSTGRES_URL": postgres.url(database="ours"),
            "VOLARY_REDIS_URL": redis.url,
            "VOLARY_TEMPORAL_ADDRESS": temporal.address,
        }


@pytest.mark.timeout(400)
async def test_a_mesh_uses_engines_that_exist(elsewhere: dict[str, str], tmp_path: Path) -> None:
    here = ("--data-dir", str(tmp_path / "mesh"))
    up = await volary(
        "up", "--detach", *here, "--port-base", str(PORT_BASE), env=elsewhere, timeout_s=200
    )
    try:
        assert up.returncode == 0, up.stderr[-4_000:]
        status = json.loads((await volary("status", "--json", *here, env=elsewhere)).stdout)
        names = {row["name"] for row in status["components"]}
        assert not names & {"postgres", "redis", "temporal"}
        assert {row["health"] for row in status["components"]} == {"ready"}
        assert status["temporal"] == elsewhere["VOLARY_TEMPORAL_ADDRESS"]
        assert PASSWORD not in json.dumps(status)
        applied = await volary("apply", "examples/flights", *here, env=elsewhere)
        assert applied.returncode == 0, applied.stderr[-4_000:]
        connection = await asyncpg.connect(elsewhere["VOLARY_POSTGRES_URL"])
        models = await connection.fetchval("SELECT count(*) FROM registry.models")
        await connection.close()
        assert models == 1
    finally:
        down = await volary("down", *here, env=elsewhere)
    assert down.returncode == 0, down.stderr
    connection = await asyncpg.connect(elsewhere["VOLARY_POSTGRES_URL"])
    assert await connection.fetchval("SELECT count(*) FROM registry.models") == 1
    await connection.close()
