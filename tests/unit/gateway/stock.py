"""What a stock client meets: one real replica of a model behind an edge, whole."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Traffic, Weight
from volary_gateway.xds.mesh import Mesh, snapshot_of

from tests.unit.gateway.rig import Rig, until
from tests.unit.inference import graphs
from tests.unit.inference.peers import Keys, Peers
from tests.unit.inference.replica import Replica
from tests.unit.stock_client import client_python

CALLS_S = 60
READY_S = 60
MODEL = ModelName("default", "m")
WHOLE = Traffic(MODEL, 1, (Weight(1, 10_000),), production=1)


@asynccontextmanager
async def one_replica(folder: Path, redis_url: str) -> AsyncIterator[tuple[Keys, str]]:
    """Run a replica that has version 1 ready; yields the keys that it knows, and its address."""
    keys = Keys(folder)
    peers = Peers(keys)
    await peers.start()
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica = Replica(folder, keys, peers, redis_url)
    replica.start()
    try:
        await replica.ready()
        await until(lambda: peers.gateway.state_of(1) == "READY", READY_S)
        yield keys, f"127.0.0.1:{replica.port}"
    finally:
        replica.close()
        await peers.stop()


async def publish(
    running: Rig,
    traffic: Traffic,
    ready: Mapping[VersionName, tuple[str, ...]],
    at: tuple[str, ...],
    **more: Any,
) -> None:
    """Have Envoy serve some traffic."""
    snapshot = snapshot_of(Mesh(running.edge, (traffic,), dict(ready), at, **more))
    running.plane.publish(snapshot)
    assert await running.plane.converge(snapshot, 20), running.plane.rejections


async def serve(running: Rig, address: str) -> None:
    """Have Envoy send every call of the model to one replica."""
    await publish(running, WHOLE, {VersionName.of(MODEL, 1): (address,)}, (address,))


async def require_answered(calls: Path, *words: str) -> None:
    """Run a script of calls with a stock client, which says in the end that all were answered."""
    python = await asyncio.to_thread(client_python)
    done = await asyncio.to_thread(
        subprocess.run,
        [python, calls, *words],
        capture_output=True,
        text=True,
        timeout=CALLS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout == "all calls answered\n"
