from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.native import ENGINES, require

from .peers import Keys, Peers
from .replica import Replica


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Which engine answers on the data port: every test of a replica runs on each."""
    require(request.param)
    return request.param


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
async def peers(keys: Keys) -> AsyncIterator[Peers]:
    peers = Peers(keys)
    await peers.start()
    yield peers
    await peers.stop()


@pytest.fixture
async def replica(
    tmp_path: Path, keys: Keys, peers: Peers, redis: Redis, redis_url: str, engine: str
) -> AsyncIterator[Replica]:
    """A replica that is not started yet; its Redis is empty."""
    replica = Replica(tmp_path, keys, peers, redis_url, engine)
    yield replica
    replica.close()
