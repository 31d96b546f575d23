"""What the recorder concludes from Envoy's counters, reading after reading."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from volary_gateway.admin import EnvoyAdmin, Reading
from volary_gateway.domain.completeness import Poll
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Traffic, Weight
from volary_gateway.recorder import REST_S, Recorder
from volary_gateway.store.evidence import Gap
from volary_kit.database import Database
from volary_kit.testing import ManualClock

MODEL = ModelName("default", "m")
CLUSTER = VersionName.of(MODEL, 1).cluster
LOOK_S = 0.5


class Story:
    """A recorder, and an Envoy of which only the counters are there."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        traffic = Traffic(MODEL, 1, (Weight(1, 10_000),), production=1)
        nobody = Database("postgresql://nobody@127.0.0.1:1/none", "gateway")
        admin = EnvoyAdmin(None, self.clock)
        self.recorder = Recorder(nobody, admin, self.clock, lambda: [traffic])

    @property
    def gaps(self) -> list[Gap]:
        """What is in doubt of any model."""
        return [gap for found in self.recorder._gaps.values() for gap in found.values()]

    def looks(self, times: int, attempts: int | None) -> None:
        """Read the counter; without attempts Envoy has no such cluster."""
        for _ in range(times):
            now_us = self.clock.now_us()
            polls = {} if attempts is None else {CLUSTER: Poll(now_us, now_us, attempts)}
            self.recorder._reconcile(Reading(polls, 0, 9, now_us))
            self.clock.advance(LOOK_S)

    def answers(self, calls: int) -> None:
        """Take the records of calls."""
        for _ in range(calls):
            self.recorder.record(CLUSTER, self.clock.now_us(), None)


def test_a_cluster_that_went_and_came_back_is_counted_from_zero():
    story = Story()
    story.looks(1, attempts=0)
    story.answers(5)
    story.looks(10, attempts=5)
    assert story.recorder.is_reconciled(MODEL)
    story.looks(1, attempts=None)
    story.answers(2)
    story.looks(10, attempts=2)
    assert story.recorder.is_reconciled(MODEL)
    assert story.gaps == []


def test_a_counter_that_falls_back_without_going_away_is_doubted():
    story = Story()
    story.looks(1, attempts=0)
    story.answers(5)
    story.looks(10, attempts=5)
    story.answers(2)
    story.looks(10, attempts=2)
    assert [gap.is_final for gap in story.gaps] == [True]


def test_what_is_lost_after_it_came_back_is_found():
    story = Story()
    story.looks(1, attempts=0)
    story.answers(5)
    story.looks(10, attempts=5)
    story.looks(1, attempts=None)
    story.answers(2)
    story.looks(10, attempts=3)
    assert [gap.lost for gap in story.gaps] == [1]


def test_a_counter_that_fell_back_is_trusted_again_soon():
    story = Story()
    story.looks(1, attempts=0)
    story.answers(50)
    story.looks(10, attempts=50)
    story.looks(20, attempts=2)
    story.recorder._gaps.clear()
    for calls in range(20):
        story.answers(1)
        story.looks(1, attempts=3 + calls)
    story.looks(10, attempts=22)
    assert story.recorder.is_reconciled(MODEL)
    assert story.gaps == []


def test_a_version_that_is_let_go_is_counted_from_zero_when_it_is_wanted_again():
    story = Story()
    story.looks(1, attempts=0)
    story.answers(5)
    story.looks(10, attempts=5)
    story.recorder.forget(CLUSTER)  # and no reading comes before the next one of that name
    story.answers(2)
    story.looks(10, attempts=2)
    assert story.recorder.is_reconciled(MODEL)
    assert story.gaps == []


def test_a_first_record_that_overtakes_the_reading_without_it_is_kept():
    story = Story()
    story.looks(1, attempts=None)
    story.answers(1)  # Envoy was asked just before: the answer has no such cluster yet
    story.looks(1, attempts=None)
    story.looks(10, attempts=1)
    assert story.recorder.is_reconciled(MODEL)
    assert story.gaps == []


async def test_envoy_is_asked_when_pushes_rest():
    asked: list[str] = []
    enough = asyncio.Event()

    async def rest(timeout_s: float) -> None:
        assert timeout_s == REST_S
        asked.append("rest")

    class Admin(EnvoyAdmin):
        async def read(self) -> None:
            asked.append("read")
            enough.set()

    clock = ManualClock()
    nobody = Database("postgresql://nobody@127.0.0.1:1/none", "gateway")
    recorder = Recorder(nobody, Admin(None, clock), clock, list, rest)
    reconciling = asyncio.create_task(recorder.reconcile_always())
    await asyncio.wait_for(enough.wait(), 30)
    reconciling.cancel()
    with suppress(asyncio.CancelledError):
        await reconciling
    assert asked[:2] == ["rest", "read"]
