"""Liveness and readiness, and who is told when they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from grpc_health.v1 import health_pb2
from volary_kit import health as module
from volary_kit.health import (
    LIVENESS,
    READINESS,
    STATUS,
    AioHealthHandler,
    Health,
    Readiness,
    SyncHealthHandler,
)


async def passes() -> None:
    return None


async def fails() -> None:
    raise ConnectionError("the database is away")


async def says_no() -> bool:
    return False


async def hangs() -> None:
    await asyncio.Event().wait()


def test_liveness_needs_nothing() -> None:
    health = Health(["volary.birds.v1.BirdsService"])
    assert health.status(LIVENESS) == STATUS.SERVING
    for service in ("", READINESS, "volary.birds.v1.BirdsService"):
        assert health.status(service) == STATUS.NOT_SERVING
    assert health.status("volary.other") is None


def test_a_drain_has_no_way_back() -> None:
    health = Health()
    health.set_ready(True)
    assert health.status("") == STATUS.SERVING
    health.drain()
    health.set_ready(True)
    assert health.status("") == STATUS.NOT_SERVING
    assert health.status(LIVENESS) == STATUS.SERVING


async def test_every_check_must_pass() -> None:
    health = Health()
    assert await Readiness(health, [passes, passes]).check()
    assert health.is_ready
    for bad in (fails, says_no):
        assert not await Readiness(health, [passes, bad]).check()
        assert not health.is_ready


async def test_a_check_that_hangs_has_failed(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.01)
    health = Health()
    assert not await Readiness(health, [hangs]).check()


def test_watchers_hear_of_changes_alone() -> None:
    health, heard = Health(), []
    with health.watched(lambda: heard.append(health.is_ready)):
        health.set_ready(True)
        health.set_ready(True)
        health.set_ready(False)
        health.drain()
    health.set_ready(True)
    assert heard == [True, False, False]


class Caller:
    """A gRPC context of somebody who stays."""

    def is_active(self) -> bool:
        return True

    def add_callback(self, _callback: Callable[[], None]) -> bool:
        return True


def test_a_watch_tells_of_a_drain_that_began_while_it_sent() -> None:
    health = Health()
    health.set_ready(True)
    watch = SyncHealthHandler(health).Watch(health_pb2.HealthCheckRequest(), Caller())  # pyright: ignore[reportArgumentType]
    assert next(watch).status == STATUS.SERVING
    health.drain()
    assert [reply.status for reply in watch] == [STATUS.NOT_SERVING]


async def test_a_watch_of_an_event_loop_tells_of_a_drain_and_ends() -> None:
    health = Health()
    health.set_ready(True)
    watch = AioHealthHandler(health).Watch(health_pb2.HealthCheckRequest(), None)
    assert (await anext(watch)).status == STATUS.SERVING
    health.drain()
    async with asyncio.timeout(5):
        assert [reply.status async for reply in watch] == [STATUS.NOT_SERVING]
