"""A stock V2 client works through Envoy with an API key and no header of ours."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from redis.asyncio import Redis
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Traffic, Weight
from volary_gateway.xds.mesh import Mesh, snapshot_of

from tests.unit.gateway.rig import rig, until
from tests.unit.inference import graphs
from tests.unit.inference.peers import Keys, Peers
from tests.unit.inference.replica import Replica
from tests.unit.stock_client import client_python

CALLS = Path(__file__).with_name("stock_calls.py")
CALLS_S = 60
MODEL = ModelName("default", "m")


async def test_stock_tritonclient_works_through_the_edge(tmp_path: Path, redis: Redis, redis_url):
    python = await asyncio.to_thread(client_python)
    keys = Keys(tmp_path)
    peers = Peers(keys)
    await peers.start()
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica = Replica(tmp_path, keys, peers, redis_url)
    replica.start()
    try:
        await replica.ready()
        await until(lambda: peers.gateway.state_of(1) == "READY", 60)
        async with rig(tmp_path, key=keys.issuer) as running:
            at = (f"127.0.0.1:{replica.port}",)
            traffic = Traffic(MODEL, 1, (Weight(1, 10_000),), production=1)
            ready = {VersionName.of(MODEL, 1): at}
            snapshot = snapshot_of(Mesh(running.edge, (traffic,), ready, at))
            running.plane.publish(snapshot)
            assert await running.plane.converge(snapshot, 20), running.plane.rejections
            done = await asyncio.to_thread(
                subprocess.run,
                [python, CALLS, f"127.0.0.1:{running.port}", keys.api_key()],
                capture_output=True,
                text=True,
                timeout=CALLS_S,
                check=False,
            )
    finally:
        replica.close()
        await peers.stop()
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout == "all calls answered\n"
