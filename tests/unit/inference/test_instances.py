"""Instance groups: runs of one version side by side, declared with it and shown as they are."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from volary_inference.domain.batching import Batcher, BatchPolicy, Ticket
from volary_inference.domain.instances import Instances
from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.statistics import Statistics
from volary_inference.domain.versions import State, Version
from volary_inference.handlers.v2_descriptions import config_of
from volary_inference.lifecycle.crashes import RunJournal
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package, Reading
from volary_inference.lifecycle.residence import Bounds, Residence
from volary_kit.clock import SystemClock
from volary_kit.errors import Unavailable

from . import graphs

CLOCK = SystemClock()
WAIT_S = 20.0
KEY = VersionKey("p", "m", 1)


class Meeting:
    """A graph whose runs end only when two of them are in it at once."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._barrier.wait(WAIT_S)
        return {"y": feeds["x"] + 1}


def batcher(runner: object, times: RunTimes) -> Batcher:
    policy = BatchPolicy(max_rows=1)
    return Batcher("m", runner, policy, CLOCK, Statistics(), is_batched=True, run_times=times)  # pyright: ignore[reportArgumentType]


def ticket(value: float) -> Ticket:
    return Ticket({"x": np.array([[value]], np.float32)}, 1, CLOCK.monotonic_s() + WAIT_S)


def test_two_instances_run_at_once_and_each_caller_gets_its_own() -> None:
    times, runner = RunTimes(), Meeting()
    instances = Instances([batcher(runner, times) for _ in range(2)])
    tickets = [ticket(float(i)) for i in range(8)]
    for each in tickets:
        instances.put(each)
    found = [float(each.wait(WAIT_S)["y"][0, 0]) for each in tickets]
    assert found == [i + 1.0 for i in range(8)]
    assert instances.close(WAIT_S)
    with pytest.raises(Unavailable):
        instances.put(ticket(0.0))


def test_a_short_run_is_its_callers_own_while_an_instance_is_free() -> None:
    class Plus:
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"y": feeds["x"] + 1}

    instances = Instances([batcher(Plus(), RunTimes()) for _ in range(2)])
    held = [each._turn for each in instances._batchers]
    with held[0]:
        one = ticket(4.0)
        assert instances.run_now(one)
        assert one.wait(0)["y"].tolist() == [[5.0]]
        with held[1]:
            assert not instances.run_now(ticket(5.0))
    assert instances.close(WAIT_S)


def package(instances: int) -> Package:
    data = graphs.sigmoid_sum()
    declared = {"features": ["a", "b", "c"], "instances": instances}
    reading = Reading(len(data), lambda: data)
    return Package(Description("sha256:" + "a" * 64), data, serving=declared, reading=reading)


def count_of(loader: Loader, given: Package) -> int:
    graph = loader.open(given)
    guard = loader.guard(graph.signature, given)
    with loader.noted(given.description.digest) as slot:
        serving = loader.serve(KEY, graph, RunTimes(), guard, slot, given.reading)
    shown = config_of(Version(KEY, "d", State.READY, serving), serving)
    assert serving.close(WAIT_S)
    serving.release()
    return shown.instance_group[0].count


def test_what_is_declared_is_what_there_is_and_what_is_shown(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path)
    journal.open()
    loader = Loader(BatchPolicy(), CLOCK, journal)
    free = len(journal._free)
    assert [count_of(loader, package(count)) for count in (1, 3)] == [1, 3]
    assert len(journal._free) == free  # each had a place of its own, and gave it back
    journal.close()


def test_a_graph_that_may_be_forgotten_runs_in_one_thread() -> None:
    residence = Residence(Bounds(budget_bytes=1 << 30), CLOCK, lambda _: False)
    loader = Loader(BatchPolicy(), CLOCK, residence=residence)
    assert count_of(loader, package(3)) == 1


def test_a_version_with_instances_is_no_plain_one() -> None:
    loader, given = Loader(BatchPolicy(), CLOCK), package(2)
    assert not loader.guard(loader.open(given).signature, given).is_plain
