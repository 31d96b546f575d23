"""A short run of the long one: no call fails while everything about it is lost or changed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc

from bench.rollout.killing import REPLICAS, WHOLE, Trouble, make_trouble
from bench.rollout.seats import Seats
from tests.unit.gateway.mesh import mesh
from tests.unit.gateway.rig import Load

WORDS = [sys.executable, "-m", "bench.rollout.replica", "--leave"]
AT_ONCE = Trouble(calls=0, rate=1.0, pushes=15)  # a round of each kind, none waits for the clock


async def test_no_call_fails_while_replicas_and_gateway_are_lost(
    tmp_path: Path, databases: Any
) -> None:
    url = await databases.fresh("gateway")
    async with mesh(tmp_path, url, []) as running:
        await asyncio.wait_for(running.direct("test").channel_ready(), 60)
        seats = Seats(WORDS, running, REPLICAS)
        try:
            await seats.join()
            before = seats.addresses
            await running.load(1, 2)
            await running.set(0, (1, WHOLE), production_version=1)
            await seats.settled()
            stub = v2_grpc.GRPCInferenceServiceStub(running.edge())
            request, key = v2.ModelInferRequest(model_name=running.model), running.api_key()
            met: set[str] = set()

            async def call() -> None:
                reply = await stub.ModelInfer(request, metadata=key, timeout=30)
                met.add(reply.model_version)

            async with Load(call, callers=2) as load:  # a failed call fails the test
                await load.more(1)
                done = await make_trouble(running, seats, AT_ONCE)
                await load.more(10)
        finally:
            await seats.close()
    await databases.drop(url)
    assert done == {
        "pushes": 15,
        "replicas_killed": 1,
        "gateways_killed": 1,
        "replicas_replaced": REPLICAS,
    }
    assert not set(before) & set(seats.addresses)
    assert met == {"1", "2"}
