"""A stock V2 client works unchanged."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from pathlib import Path

from tests.unit.stock_client import client_python

from . import graphs
from .peers import Peers
from .replica import Replica

CALLS = Path(__file__).with_name("triton_calls.py")
CALLS_S = 120


async def test_a_stock_tritonclient_works_blocking_streaming_and_async(
    replica: Replica, peers: Peers
) -> None:
    python = await asyncio.to_thread(client_python)
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    prefix = f"volary_test_{uuid.uuid4().hex[:12]}"
    replica.start(VOLARY_INFERENCE_SHARED_MEMORY_PREFIX=prefix)
    await replica.ready()
    keys = replica.keys.api_key(), replica.keys.api_key("operator")
    done = await asyncio.to_thread(
        subprocess.run,
        [python, CALLS, f"127.0.0.1:{replica.port}", *keys, f"{prefix}_tensors"],
        capture_output=True,
        text=True,
        timeout=CALLS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout == "all calls answered\n"
