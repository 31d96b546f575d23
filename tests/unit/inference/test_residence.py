"""A budget of memory: who is forgotten, who is not, and that nobody's answer changes."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import pytest
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.domain.batching import RunFailed
from volary_inference.domain.predictions import VersionKey
from volary_inference.lifecycle.residence import COPIES, SESSION_BYTES, Residence, ResidentGraph
from volary_kit.errors import DataLoss

from . import graphs

SIZE = 1 << 20
EACH = SESSION_BYTES + COPIES * SIZE
ROW = {"features": np.array([[1, 0, 0]], np.float32)}
PINNED = VersionKey("p", "pinned", 1)


class House:
    """A residence with room for two graphs, and how often each was read again."""

    def __init__(self) -> None:
        self.residence = Residence(2 * EACH, lambda key: key == PINNED)
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
    assert (house.residence.evictions, house.residence.bytes_held) == (3, 2 * EACH)


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
    residence = Residence(EACH, lambda key: False)

    def lost() -> OnnxGraph:
        raise DataLoss("DIGEST_MISMATCH", "the file is another")

    graph = OnnxGraph(graphs.sigmoid_sum())
    first = residence.hold(VersionKey("p", "a", 1), graph, SIZE, lost)
    residence.hold(VersionKey("p", "b", 1), graph, SIZE, lost)
    with pytest.raises(RunFailed, match="read again"):
        first.run(ROW)


def test_without_a_budget_a_graph_is_itself() -> None:
    graph = OnnxGraph(graphs.sigmoid_sum())
    residence = Residence(0, lambda key: False)
    assert residence.hold(VersionKey("p", "a", 1), graph, SIZE, lambda: graph) is graph
