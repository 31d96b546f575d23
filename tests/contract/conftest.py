"""Each service once per session, started as its own process on real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.contract.process import Engines, Keys, Running, start
from tests.contract.reflected import Rpc, rpcs
from tests.contract.services import UNDER_TEST, Contracted
from tests.native import require


@dataclass(frozen=True)
class Listener:
    """One port of a running service, and everything that it serves."""

    running: Running
    address: str
    keys: Keys
    rpcs: tuple[Rpc, ...]

    def channel(self, credential: str | None = None) -> grpc.Channel:
        return self.running.channel(self.address, credential)

    def allowed_channel(self, rpc: Rpc) -> grpc.Channel:
        """Return a channel whose credential the row of the RPC allows."""
        return self.channel(self.keys.credential(rpc.policy.allow))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def surveyed() -> dict[str, dict[str, bool]]:
    """What the services said of their RPCs, by service."""
    return {}


@pytest.fixture(scope="session")
def starting(
    databases: Any,
    redis_url: str,
    temporal_address: str,
    keys: Keys,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Contracted], Any]:
    """`async with starting(service) as running`: a process of one's own."""

    @asynccontextmanager
    async def run(service: Contracted) -> AsyncIterator[Running]:
        url = await databases.fresh(service.name) if service.has_schema else None
        engines = Engines(url, redis_url, temporal_address)
        folder: Path = tmp_path_factory.mktemp(service.name)
        running = await asyncio.to_thread(start, service, engines, keys, folder)
        try:
            yield running
        finally:
            code = await asyncio.to_thread(running.stop)
        assert code == 0, f"{service.name} ended with {code}:\n{running.tail()}"

    return run


@pytest.fixture(scope="session", params=UNDER_TEST, ids=lambda service: service.label)
async def running(
    request: pytest.FixtureRequest, starting: Callable[[Contracted], Any]
) -> AsyncIterator[Running]:
    require(request.param.engine)
    async with starting(request.param) as service:
        yield service


@pytest.fixture
def listeners(running: Running, keys: Keys) -> Iterator[list[Listener]]:
    """Every port of the service under test; it is alive before and after."""
    token = keys.service_token()
    found = [
        Listener(running, address, keys, tuple(rpcs(running.channel(address, token))))
        for address in running.addresses
    ]
    yield found
    assert running.is_alive, f"{running.service.name} died:\n{running.tail()}"
