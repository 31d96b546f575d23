"""A stock V2 client works unchanged."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from tests.unit.stock_client import client_python

from . import graphs
from .peers import Peers
from .replica import Replica

CALLS = Path(__file__).with_name("triton_calls.py")
CALLS_S = 60


async def test_a_stock_tritonclient_works_blocking_streaming_and_async(
    replica: Replica, peers: Peers
) -> None:
    python = await asyncio.to_thread(client_python)
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica.start()
    await replica.ready()
    done = await asyncio.to_thread(
        subprocess.run,
        [python, CALLS, f"127.0.0.1:{replica.port}", replica.keys.api_key()],
        capture_output=True,
        text=True,
        timeout=CALLS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout == "all calls answered\n"
