"""Two gateways of one database: one leads, the other takes its place as it was."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import asyncpg
import grpc
from volary.gateway.v1 import traffic_pb2

from tests.unit.gateway.mesh import Mesh, mesh
from tests.unit.gateway.rig import Backend

WAITERS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def second(first: Mesh, folder: Path) -> Mesh:
    """Return another gateway of the same mesh: same database, same keys, a port of its own."""
    folder.mkdir()
    other = Mesh(
        folder,
        first.database_url,
        edge_port=first.edge_port,
        admin_port=first.admin_port,
        advertised_port=first.port,
        fallback_port=first.fallback_port,
    )
    other.keys, other.issuing, other.model = first.keys, first.issuing, first.model
    for name in ("gateway.pem", "issuing.pem", "jwks.json"):
        (folder / name).write_bytes((first.folder / name).read_bytes())
    return other


async def waiting(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(WAITERS)
    finally:
        await connection.close()


async def until_waiting(url: str, number: int) -> None:
    end = asyncio.get_running_loop().time() + 60
    while await waiting(url) != number:
        assert asyncio.get_running_loop().time() < end, "nobody waits to lead"
        await asyncio.sleep(0.05)


async def test_second_gateway_waits_and_takes_over_with_the_same_snapshot(
    tmp_path: Path, databases
):
    url = await databases.fresh("gateway")
    backend = Backend("one").start()
    await backend.server.start()
    try:
        await _take_over(tmp_path, url, backend)
    finally:
        await backend.server.stop(None)
        await databases.drop(url)


async def _take_over(tmp_path: Path, url: str, backend: Backend) -> None:
    (tmp_path / "first").mkdir()
    async with mesh(tmp_path / "first", url, [backend]) as first:
        await asyncio.wait_for(first.direct("test").channel_ready(), 60)
        await first.load(1, 2)
        audience = traffic_pb2.Audience(header="x-ring", values=["beta"])
        await first.set(0, (2, 1_000), (1, 9_000), audience=audience)
        before = await first.get()
        other = second(first, tmp_path / "second")
        other.start_gateway()
        try:
            await until_waiting(url, 1)
            refused = await _code(other)
            assert refused is grpc.StatusCode.UNAVAILABLE  # it does not even listen
            first.kill_gateway()
            after = await other.get()
            assert after.snapshot_version == before.snapshot_version
            assert (after.generation, after.audience) == (before.generation, audience)
            third = second(first, tmp_path / "third")
            third.start_gateway()
            await until_waiting(url, 1)
            third.gateway.send_signal(signal.SIGTERM)  # one that waits leaves at once
            assert await asyncio.to_thread(third.gateway.wait, 10) == 0
        finally:
            other.kill_gateway()
            await other.close()


async def _code(other: Mesh) -> grpc.StatusCode:
    try:
        await asyncio.wait_for(other.direct("test").channel_ready(), 0.5)
    except TimeoutError:
        return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.OK
