"""A budget of memory: who is forgotten, who is not, and that nobody's answer changes."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import pytest
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.domain.batching import RunFailed
from volary_inference.domain.predictions import VersionKey
from volary_inference.lifecycle.residence import (
    COPIES,
    SESSION_BYTES,
    Bounds,
    Occupancy,
    Residence,
    ResidentGraph,
)
from volary_kit.errors import DataLoss
from volary_kit.testing import ManualClock

from . import graphs

SIZE = 1 << 20
IDLE_S = 60.0
EACH = SESSION_BYTES + COPIES * SIZE
ROW = {"features": np.array([[1, 0, 0]], np.float32)}
PINNED = VersionKey("p", "pinned", 1)


class House:
    """A residence with room for two graphs, and how often each was read again."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.residence = Residence(
            Bounds(2 * EACH, IDLE_S), self.clock, lambda key: key in self.pinned
        )
        self.pinned = {PINNED}
        self.reads: list[str] = []

    def add(self, name: str) -> ResidentGraph:
        key, graph = VersionKey("p", name, 1), OnnxGraph(graphs.sigmoid_sum(bias=len(name)))

        def read() -> OnnxGraph:
            self.reads.append(name)
            return OnnxGraph(graphs.sigmoid_sum(bias=len(name)))

        held = self.residence.hold(key, graph, SIZE, read)
        assert isinstance(held, ResidentGraph)
        return held


def score(graph: ResidentGraph) -> float:
    return float(graph.run(ROW)["probability"][0, 0])


def test_the_least_recently_used_is_forgotten_and_read_again_when_asked() -> None:
    house = House()
    a, bb = house.add("a"), house.add("bb")
    said = score(bb), score(a)  # a was used last
    ccc = house.add("ccc")
    assert (a.is_here, bb.is_here, ccc.is_here) == (True, False, True)
    assert (score(bb), score(a)) == said
    assert house.reads == ["bb", "a"]
    assert house.residence.occupancy() == Occupancy(
        resident=2, asleep=1, held_bytes=2 * EACH, evictions=3, reloads=2, reload_s=0.0
    )


def test_what_is_in_production_is_never_forgotten() -> None:
    house = House()
    pinned, a, bb = house.add("pinned"), house.add("a"), house.add("bb")
    assert (pinned.is_here, a.is_here, bb.is_here) == (True, False, True)


def test_what_runs_is_not_forgotten_under_its_feet() -> None:
    house = House()
    a = house.add("a")
    entered, leave = threading.Event(), threading.Event()
    inner = a._graph

    class Slow:
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            entered.set()
            assert leave.wait(10)
            assert inner is not None
            return inner.run(feeds)

    a._graph = Slow()
    runner = threading.Thread(target=score, args=(a,))
    runner.start()
    assert entered.wait(10)
    house.add("bb")
    house.add("ccc")
    assert a.is_here
    leave.set()
    runner.join(10)


def test_a_graph_that_cannot_be_read_again_fails_its_call_alone() -> None:
    residence = Residence(Bounds(EACH), ManualClock(), lambda key: False)

    def lost() -> OnnxGraph:
        raise DataLoss("DIGEST_MISMATCH", "the file is another")

    graph = OnnxGraph(graphs.sigmoid_sum())
    first = residence.hold(VersionKey("p", "a", 1), graph, SIZE, lost)
    residence.hold(VersionKey("p", "b", 1), graph, SIZE, lost)
    with pytest.raises(RunFailed, match="read again"):
        first.run(ROW)


def test_without_a_budget_a_graph_is_itself() -> None:
    graph = OnnxGraph(graphs.sigmoid_sum())
    residence = Residence(Bounds(), ManualClock(), lambda key: False)
    assert residence.hold(VersionKey("p", "a", 1), graph, SIZE, lambda: graph) is graph


def test_what_nobody_asks_for_is_forgotten_after_its_time_and_comes_back() -> None:
    house = House()
    a, pinned = house.add("a"), house.add("pinned")
    said = score(a)
    house.clock.advance(IDLE_S - 1)
    house.residence.forget_idle()
    assert a.is_here
    house.clock.advance(1)
    house.residence.forget_idle()
    assert (a.is_here, pinned.is_here) == (False, True)
    assert (score(a), house.reads) == (said, ["a"])


def test_what_is_put_into_production_comes_into_memory_and_stays() -> None:
    house = House()
    a = house.add("a")
    house.add("bb"), house.add("ccc")
    assert not house.residence.is_wanted(a.key)
    house.pinned.add(a.key)
    assert house.residence.is_wanted(a.key)
    house.residence.wake(a.key)
    house.add("dddd")
    assert (a.is_here, house.residence.is_wanted(a.key)) == (True, False)


def test_what_there_is_no_room_for_sleeps_until_its_first_call() -> None:
    house = House()
    key = VersionKey("p", "late", 1)
    assert not house.residence.may_sleep(key, SIZE)
    house.add("a"), house.add("bb")
    assert house.residence.may_sleep(key, SIZE)
    assert not house.residence.may_sleep(PINNED, SIZE)
    late = house.residence.hold(key, None, SIZE, lambda: OnnxGraph(graphs.sigmoid_sum()))
    assert (house.residence.occupancy().resident, house.residence.occupancy().asleep) == (2, 1)
    assert late.run(ROW)["probability"].shape == (1, 1)
    assert (house.residence.occupancy().resident, house.residence.occupancy().asleep) == (2, 1)


def test_a_version_that_went_away_takes_no_room_when_its_last_run_ends() -> None:
    house = House()
    a = house.add("a")
    house.residence.remove(a.key)
    score(a)
    assert house.residence.occupancy().held_bytes == 0
