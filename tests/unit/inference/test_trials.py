"""First loads in a child, crashes counted, what crashes too often quarantined."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from volary_inference.lifecycle import trial_worker
from volary_inference.lifecycle.crashes import MAX_SLOTS, Crashes, RunJournal
from volary_inference.lifecycle.package import Description, Package
from volary_inference.lifecycle.trial import Limits, Trials
from volary_inference.lifecycle.trial_worker import TrialWorker
from volary_inference.lifecycle.verdicts import Verdicts
from volary_kit.artifacts import digest_of
from volary_kit.errors import Aborted, FailedPrecondition, InvalidArgument, VolaryError
from volary_kit.testing import eventually

from . import graphs

GENEROUS = Limits(2 << 30, 100.0)
GOLDEN = {"inputs": {"features": [[0, 0, 0]]}, "outputs": {"probability": [[0.5]]}}


Start = Callable[..., Trials]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start trials as a replica does that comes up with this folder; all are ended at last."""
    started: list[Trials] = []

    def start(limits: Limits = GENEROUS, max_rows: int = 8) -> Trials:
        verdicts = Verdicts(tmp_path / "verdicts", max_rows)
        started.append(Trials(Crashes(tmp_path), verdicts, limits, max_rows))
        return started[-1]

    yield start
    for trials in started:
        trials.close()


def package(graph: bytes, golden: object = None) -> Package:
    return Package(Description(digest_of(graph)), graph, golden)  # pyright: ignore[reportArgumentType]


def hungry() -> bytes:
    """A file of a few hundred bytes whose output has 2^33 elements."""
    shape = numpy_helper.from_array(np.array([1 << 33], np.int64), "shape")
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["wide"]),
        helper.make_node("ReduceSum", ["wide"], ["y"], keepdims=0),
    ]
    inputs, outputs = [graphs.value("x", [1])], [graphs.value("y", [])]
    return graphs.model_of(nodes, inputs, outputs, [shape]).SerializeToString()


async def refusal(trials: Trials, given: Package) -> VolaryError:
    with pytest.raises(VolaryError) as caught:
        await trials.require(given)
    return caught.value


async def test_a_good_artifact_is_tried_once_and_the_replica_remembers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = package(graphs.sigmoid_sum(), GOLDEN)
    found = await start().require(given)
    assert [spec.name for spec in found.signature.inputs] == ["features"]
    monkeypatch.setattr(trial_worker, "MODULE", "no.such.module")
    assert (await start().require(given)).signature == found.signature
    crashed = await refusal(start(), package(graphs.gather()))
    assert (crashed.reason, "exit code 1" in crashed.message) == ("TRIAL_CRASHED", True)


async def test_the_child_refuses_as_the_replica_would(start: Start) -> None:
    trials = start()
    wrong = {**GOLDEN, "outputs": {"probability": [[0.9]]}}
    found = await refusal(trials, package(graphs.sigmoid_sum(), wrong))
    assert (type(found), found.reason) == (FailedPrecondition, "GOLDEN_MISMATCH")
    found = await refusal(trials, package(b"\x80pickle"))
    assert (type(found), found.reason) == (InvalidArgument, "ARTIFACT_REFUSED")


async def test_what_takes_too_much_memory_is_refused_and_takes_nothing_here(
    start: Start,
) -> None:
    trials = start(replace(GENEROUS, memory_bytes=1 << 30))
    found = await refusal(trials, package(hungry()))
    assert not isinstance(found, Aborted)  # it is refused for good, not tried for ever
    assert found.reason in ("WARM_UP_FAILED", "TRIAL_OUT_OF_MEMORY", "ARTIFACT_REFUSED")


async def test_what_never_ends_is_ended_and_quarantined_after_three_trials(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = package(graphs.endless())
    trials = start(Limits(2 << 30, 8.0), 1)
    found = await refusal(trials, given)
    assert (type(found), found.reason) in (
        (Aborted, "TRIAL_TIMED_OUT"),
        (Aborted, "TRIAL_CRASHED"),  # its processor time ran out first
    )
    trials.close()
    monkeypatch.setattr(trial_worker, "MODULE", "no.such.module")  # the next two end at once
    assert isinstance(await refusal(trials, given), Aborted)
    assert (await refusal(trials, given)).reason == "QUARANTINED"
    again = start(GENEROUS, 1)  # the replica starts anew
    assert (await refusal(again, given)).reason == "QUARANTINED"
    again.forgive(given.description.digest)
    assert (await refusal(again, given)).reason == "TRIAL_CRASHED"


RUNNING = """
import ctypes, os, signal, sys
from pathlib import Path
from volary_inference.lifecycle.crashes import RunJournal
journal = RunJournal(Path(sys.argv[1]))
journal.open()
idle, running = journal.slot("sha256:" + "a" * 64), journal.slot("sha256:" + "b" * 64)
with idle:
    pass
with running:
    if sys.argv[2] == "crash":
        ctypes.string_at(0)
    elif sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "end":
    journal.close()
"""


@pytest.mark.parametrize(
    ("how", "expected"), [("crash", ["sha256:" + "b" * 64]), ("kill", []), ("end", [])]
)
def test_a_crash_accuses_what_ran_and_a_kill_nobody(
    tmp_path: Path, how: str, expected: list[str]
) -> None:
    command = [sys.executable, "-c", RUNNING, str(tmp_path), how]
    subprocess.run(command, check=False, capture_output=True)
    journal = RunJournal(tmp_path)
    assert journal.suspects() == expected
    journal.open()
    assert journal.suspects() == []
    journal.close()


def test_a_journal_without_room_notes_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path)
    journal.open()
    slots = [journal.slot(f"sha256:{i:064}") for i in range(MAX_SLOTS)]
    extra = journal.slot("sha256:" + "e" * 64)
    assert all(slot.is_noted for slot in slots)
    assert not extra.is_noted
    with extra:
        pass
    journal.release(slots[7])
    assert journal.slot("sha256:" + "f" * 64).at == slots[7].at
    journal.close()


def children(pid: str = "self", task: int | str | None = None) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{task or pid}/children").read_text().split())


def threads(pid: str) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def running() -> set[str]:
    return children("self", os.getpid())


async def test_a_trial_that_is_cancelled_leaves_no_process(start: Start) -> None:
    trials = start(GENEROUS, 1)
    before = running()  # the engines of other tests
    task = asyncio.create_task(trials.require(package(graphs.endless())))

    def alive() -> bool:
        return bool(running() - before)

    for _ in range(1_000):
        if alive():
            break
        await asyncio.sleep(0.01)
    assert alive()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive()


async def test_one_worker_tries_one_artifact_after_another_and_crashes_with_none(
    start: Start,
) -> None:
    trials, before = start(), running()
    await trials.require(package(graphs.sigmoid_sum(bias=1)))
    [worker] = running() - before
    assert threads(worker) == 1  # what forks has one thread
    found = await refusal(trials, package(b"no onnx"))
    assert found.reason == "ARTIFACT_REFUSED"
    await trials.require(package(graphs.sigmoid_sum(bias=2)))
    assert running() - before == {worker}
    assert not children(worker)
    trials.close()
    assert running() == before


async def test_a_child_that_dies_takes_its_own_trial_alone(start: Start) -> None:
    trials, before = start(Limits(2 << 30, 60.0), 1), running()
    await trials.require(package(graphs.sigmoid_sum()))
    [worker] = running() - before
    trial = asyncio.create_task(refusal(trials, package(graphs.endless())))
    while not children(worker):
        await asyncio.sleep(0.01)
    for child in children(worker):
        os.kill(int(child), signal.SIGSEGV)
    found = await trial
    assert (found.reason, "SIGSEGV" in found.message) == ("TRIAL_CRASHED", True)
    await trials.require(package(graphs.sigmoid_sum(bias=1)))
    assert running() - before == {worker}


async def test_a_verdict_holds_for_its_golden_rows_and_until_a_crash(
    start: Start, tmp_path: Path
) -> None:
    given = package(graphs.sigmoid_sum(), GOLDEN)
    await start().require(given)
    wrong = {**GOLDEN, "outputs": {"probability": [[0.9]]}}
    found = await refusal(start(), replace(given, golden=wrong))
    assert found.reason == "GOLDEN_MISMATCH"
    verdicts = Verdicts(tmp_path / "verdicts", 8)
    assert verdicts.find(given, crashes=0) is not None
    assert verdicts.find(given, crashes=1) is None
    assert Verdicts(tmp_path / "verdicts", 16).find(given, crashes=0) is None


async def test_an_idle_worker_ends_and_the_next_trial_starts_another(tmp_path: Path) -> None:
    worker, before = TrialWorker(idle_s=0.05), running()
    trials = Trials(Crashes(tmp_path), Verdicts(tmp_path / "v", 1), GENEROUS, 1, worker)
    await trials.require(package(graphs.sigmoid_sum()))

    async def is_gone() -> bool:
        return running() == before

    await eventually(is_gone, what="the end of the worker")
    await trials.require(package(graphs.sigmoid_sum(bias=1)))
    trials.close()
