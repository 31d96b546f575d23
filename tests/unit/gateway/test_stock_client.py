"""A stock V2 client works through Envoy with an API key and no header of ours."""

from __future__ import annotations

from pathlib import Path

from redis.asyncio import Redis

from tests.unit.gateway.rig import rig
from tests.unit.gateway.stock import one_replica, require_answered, serve

CALLS = Path(__file__).with_name("stock_calls.py")


async def test_stock_tritonclient_works_through_the_edge(tmp_path: Path, redis: Redis, redis_url):
    async with (
        one_replica(tmp_path, redis_url) as (keys, address),
        rig(tmp_path, key=keys.issuer) as running,
    ):
        await serve(running, address)
        await require_answered(CALLS, f"127.0.0.1:{running.port}", keys.api_key())
