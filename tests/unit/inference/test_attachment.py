"""What a replica reports of itself to gateway, and when gateway lets it go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from volary.gateway.v1 import replica_pb2, replica_service_pb2
from volary_inference.domain.statistics import Statistics
from volary_inference.domain.versions import Version
from volary_inference.lifecycle.attachment import IDLE_US, QUIET_US, Attachment, Reporter, queue_s
from volary_inference.lifecycle.desired import DesiredFile
from volary_kit.client import connect_aio
from volary_kit.clock import SystemClock
from volary_kit.health import Health
from volary_kit.testing import ManualClock, eventually

from .peers import Keys, Peers

NOW_US = 1_000_000_000
WITHIN_S = 30.0
STAY, GO = replica_pb2.FAREWELL_STAY, replica_pb2.FAREWELL_GO


def version(statistics: Statistics | None) -> Any:
    return SimpleNamespace(serving=statistics)


def test_queue_time_is_the_longest_of_those_that_are_asked() -> None:
    short, long = Statistics(), Statistics()
    for _ in range(200):
        short.answered(0.01, 0.002, NOW_US)
        long.answered(0.1, 0.05, NOW_US - QUIET_US + 1)
    assert abs(queue_s([version(short), version(long), version(None)], NOW_US) - 0.05) < 0.001


def test_nobody_waits_where_nobody_calls_any_more() -> None:
    statistics = Statistics()
    for _ in range(200):
        statistics.answered(0.1, 0.05, NOW_US)
    assert queue_s([version(statistics)], NOW_US + QUIET_US - 1) > 0.04
    assert queue_s([version(statistics)], NOW_US + QUIET_US) == 0
    assert queue_s([], NOW_US) == 0


class Called:
    """Who writes the reports of a replica, which is called all the time until it is idle."""

    is_leaving = is_idle = False

    def versions(self) -> list[Version]:
        return []

    def report(
        self,
        versions: Sequence[Version],
        *,
        is_unchanged: bool,
    ) -> replica_service_pb2.AttachRequest:
        return replica_service_pb2.AttachRequest(
            replica_id="r",
            address="127.0.0.1:1",
            incarnation="i",
            draining=self.is_leaving,
            versions_unchanged=is_unchanged,
        )


@pytest.fixture
async def attached(
    tmp_path: Path, keys: Keys, peers: Peers
) -> AsyncIterator[tuple[Attachment, Called]]:
    """A replica that is attached to the gateway of its peers."""
    reporter: Any = Called()
    heard = asyncio.Event()
    keeper: Any = SimpleNamespace(want=lambda _desired: heard.set())
    channel = connect_aio(peers.address, keys.service_token())
    file = DesiredFile(tmp_path / "desired.json")
    attachment = Attachment(channel, reporter, keeper, file, Health(), SystemClock())
    running = asyncio.create_task(attachment.run())
    async with asyncio.timeout(WITHIN_S):
        await heard.wait()
    yield attachment, reporter
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await channel.close()


def told(peers: Peers) -> Callable[[], Any]:
    async def is_told() -> bool:
        return bool(peers.gateway.reports) and peers.gateway.reports[-1].draining

    return is_told


async def test_the_last_one_goes_when_gateway_lets_it_go(
    attached: tuple[Attachment, Called], peers: Peers
) -> None:
    peers.gateway.say(STAY)
    leaving = asyncio.create_task(attached[0].leave(10 * WITHIN_S))
    await eventually(told(peers), within_s=WITHIN_S, what="a report of the drain")
    assert not leaving.done()
    peers.gateway.say(GO)
    async with asyncio.timeout(WITHIN_S):
        await leaving


async def test_the_last_one_goes_when_nobody_calls_it(
    attached: tuple[Attachment, Called], peers: Peers
) -> None:
    peers.gateway.say(STAY)
    leaving = asyncio.create_task(attached[0].leave(10 * WITHIN_S))
    await eventually(told(peers), within_s=WITHIN_S, what="a report of the drain")
    attached[1].is_idle = True
    async with asyncio.timeout(WITHIN_S):
        await leaving


@pytest.mark.parametrize("said", [STAY, replica_pb2.FAREWELL_UNSPECIFIED])
async def test_its_patience_ends_also_with_a_gateway_that_says_nothing(
    attached: tuple[Attachment, Called], peers: Peers, said: replica_pb2.Farewell
) -> None:
    peers.gateway.say(said)
    async with asyncio.timeout(WITHIN_S):
        await attached[0].leave(0.2)
    await eventually(told(peers), within_s=WITHIN_S, what="a report of the drain")


async def test_without_gateway_it_goes_at_once(
    attached: tuple[Attachment, Called], peers: Peers
) -> None:
    await peers.stop()
    async with asyncio.timeout(WITHIN_S):
        await attached[0].leave(10 * WITHIN_S)


def test_who_was_not_called_for_a_while_is_idle() -> None:
    clock, statistics = ManualClock(NOW_US), Statistics()
    versions: Any = SimpleNamespace(all=lambda: [version(statistics), version(None)])
    nothing: Any = None
    reporter = Reporter("r", lambda: "", versions, nothing, Health(), "python", clock)
    statistics.answered(0.1, 0.05, NOW_US)
    assert not reporter.is_idle
    clock.set_us(NOW_US + IDLE_US)
    assert not reporter.is_idle
    clock.set_us(NOW_US + IDLE_US + 1)
    assert reporter.is_idle
