"""A whole mesh, as `volary up` starts it, on engines that exist already: none is started."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from volary_cli.launcher.engines import (
    PostgresEngine,
    RedisEngine,
    TemporalEngine,
    free_port,
    running,
)
from volary_cli.launcher.folder import MeshFolder
from volary_client import AsyncClient

from tests.unit.receiver import Receiver, receiving

PORT_BASE = 18_800
ROOT = Path(__file__).parents[2]
PASSWORD = "elsewhere"
SECRET = "between us"
REPLICAS = 2
SCALING = {  # no wait of a small model is as long for as long, on a busy machine neither
    "VOLARY_SCALE_HIGH_MS": "25",
    "VOLARY_SCALE_LOW_MS": "10",
    "VOLARY_SCALE_RISE_S": "2",
    "VOLARY_SCALE_FALL_S": "3",
}
Done = subprocess.CompletedProcess[str]


@dataclass
class WholeMesh:
    """Where a mesh is, and the `volary` command for it."""

    folder: Path
    env: Mapping[str, str]

    async def volary(self, *words: str, timeout_s: float = 150) -> Done:
        """Run a command to its end, whatever that is."""
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "volary_cli", *words, "--data-dir", str(self.folder)],
            cwd=ROOT, env=os.environ | self.env, text=True, capture_output=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip

    async def told(self, *words: str) -> Any:
        """Run a command that succeeds; return what it says in JSON."""
        done = await self.volary(*words, "--json")
        assert done.returncode == 0, done.stderr[-4_000:]
        return json.loads(done.stdout)

    async def rolled_out(self, model: str, version: int, declared: Path) -> dict[str, Any]:
        """Roll a version out as a folder declares it; return how it ended."""
        await self.told("rollout", "start", model, "-c", str(version), "-p", str(declared))
        done = await self.volary("rollout", "watch", model, "--json")
        assert done.returncode in (0, 5), done.stderr[-4_000:]
        return json.loads(done.stdout)

    def health(self, component: str) -> str:
        """Return how a process of it is, empty when there is none of that name."""
        state = MeshFolder(self.folder).read_state() or {}
        rows = state.get("status", {}).get("components", [])
        return next((row["health"] for row in rows if row["name"] == component), "")


@pytest.fixture(scope="session")
async def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    """PostgreSQL, Redis and Temporal that no launcher started, as the environment names them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    postgres = PostgresEngine(folder / "postgres", free_port(), PASSWORD)
    redis = RedisEngine(folder / "redis", free_port(), PASSWORD)
    ports = free_port(), free_port(), free_port()
    temporal = TemporalEngine(folder / "temporal", *ports, cache=folder)
    async with AsyncExitStack() as stack:
        for engine in (postgres, redis, temporal):
            await stack.enter_async_context(running(engine, folder / f"{engine.name}.log"))
        connection = await asyncpg.connect(postgres.url())
        await connection.execute("CREATE DATABASE ours")
        await connection.close()
        yield {
            "VOLARY_POSTGRES_URL": postgres.url(database="ours"),
            "VOLARY_REDIS_URL": redis.url,
            "VOLARY_TEMPORAL_ADDRESS": temporal.address,
        }


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Who the mesh may tell of actions, by web hook."""
    with receiving() as found:
        yield found


@pytest.fixture(scope="session")
async def whole_mesh(
    elsewhere: dict[str, str], receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WholeMesh]:
    """The mesh; its end leaves the engines, and what is in them, as they are."""
    env = elsewhere | {
        "VOLARY_MONITOR_WEBHOOK_ORIGINS": json.dumps([receiver.origin]),
        "VOLARY_MONITOR_WEBHOOK_SECRET": SECRET,
        **SCALING,
    }
    mesh = WholeMesh(tmp_path_factory.mktemp("whole") / "mesh", env)
    ports, most = ("--port-base", str(PORT_BASE)), ("--max-replicas", str(REPLICAS + 1))
    up = await mesh.volary("up", "--detach", *ports, *most, timeout_s=200)
    try:
        assert up.returncode == 0, up.stderr[-4_000:]
        yield mesh
    finally:
        down = await mesh.volary("down")
    assert down.returncode == 0, down.stderr
    connection = await asyncpg.connect(elsewhere["VOLARY_POSTGRES_URL"])
    assert await connection.fetchval("SELECT count(*) FROM registry.models") > 0
    await connection.close()


@pytest.fixture(scope="session")
async def client(whole_mesh: WholeMesh) -> AsyncIterator[AsyncClient]:
    """Whoever has the mesh's own key, through Envoy."""
    status = await whole_mesh.told("status")
    async with AsyncClient(status["gateway"], status["api_key"], timeout_s=30) as client:
        yield client
