"""First loads in a child, crashes counted, what crashes too often quarantined."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from volary_inference.lifecycle import trial
from volary_inference.lifecycle.crashes import MAX_SLOTS, Crashes, RunJournal
from volary_inference.lifecycle.package import Description, Package
from volary_inference.lifecycle.trial import Limits, Trials
from volary_kit.artifacts import digest_of
from volary_kit.errors import Aborted, FailedPrecondition, InvalidArgument, VolaryError

from . import graphs

GENEROUS = Limits(2 << 30, 100.0)
GOLDEN = {"inputs": {"features": [[0, 0, 0]]}, "outputs": {"probability": [[0.5]]}}


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


def endless() -> bytes:
    """A loop of 2^62 rounds."""
    rounds = numpy_helper.from_array(np.array(1 << 62, np.int64), "rounds")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "v"], ["w"]),
        ],
        "body",
        [
            graphs.value("i", [], TensorProto.INT64),
            graphs.value("go", [], TensorProto.BOOL),
            graphs.value("v", [1]),
        ],
        [graphs.value("go_on", [], TensorProto.BOOL), graphs.value("w", [1])],
    )
    true = numpy_helper.from_array(np.array(True), "true")
    nodes = [helper.make_node("Loop", ["rounds", "true", "x"], ["y"], body=body)]
    inputs, outputs = [graphs.value("x", [1])], [graphs.value("y", [1])]
    return graphs.model_of(nodes, inputs, outputs, [rounds, true]).SerializeToString()


async def refusal(trials: Trials, given: Package) -> VolaryError:
    with pytest.raises(VolaryError) as caught:
        await trials.require(given)
    return caught.value


async def test_a_good_artifact_is_tried_once_and_the_replica_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = package(graphs.sigmoid_sum(), GOLDEN)
    await Trials(Crashes(tmp_path), GENEROUS, 8).require(given)
    monkeypatch.setattr(trial, "CHILD", "no.such.module")
    await Trials(Crashes(tmp_path), GENEROUS, 8).require(given)
    crashed = await refusal(Trials(Crashes(tmp_path), GENEROUS, 8), package(graphs.gather()))
    assert (crashed.reason, "exit code 1" in crashed.message) == ("TRIAL_CRASHED", True)


async def test_the_child_refuses_as_the_replica_would(tmp_path: Path) -> None:
    trials = Trials(Crashes(tmp_path), GENEROUS, 8)
    wrong = {**GOLDEN, "outputs": {"probability": [[0.9]]}}
    found = await refusal(trials, package(graphs.sigmoid_sum(), wrong))
    assert (type(found), found.reason) == (FailedPrecondition, "GOLDEN_MISMATCH")
    found = await refusal(trials, package(b"\x80pickle"))
    assert (type(found), found.reason) == (InvalidArgument, "ARTIFACT_REFUSED")


async def test_what_takes_too_much_memory_is_refused_and_takes_nothing_here(
    tmp_path: Path,
) -> None:
    trials = Trials(Crashes(tmp_path), replace(GENEROUS, memory_bytes=1 << 30), 8)
    found = await refusal(trials, package(hungry()))
    assert not isinstance(found, Aborted)  # it is refused for good, not tried for ever
    assert found.reason in ("WARM_UP_FAILED", "TRIAL_OUT_OF_MEMORY", "ARTIFACT_REFUSED")


async def test_what_never_ends_is_ended_and_quarantined_after_three_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = package(endless())
    trials = Trials(Crashes(tmp_path), Limits(2 << 30, 8.0), 1)
    found = await refusal(trials, given)
    assert (type(found), found.reason) in (
        (Aborted, "TRIAL_TIMED_OUT"),
        (Aborted, "TRIAL_CRASHED"),  # its processor time ran out first
    )
    monkeypatch.setattr(trial, "CHILD", "no.such.module")  # the next two end at once
    assert isinstance(await refusal(trials, given), Aborted)
    assert (await refusal(trials, given)).reason == "QUARANTINED"
    again = Trials(Crashes(tmp_path), GENEROUS, 1)  # the replica starts anew
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


async def test_a_trial_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    trials = Trials(Crashes(tmp_path), GENEROUS, 1)
    children = Path(f"/proc/self/task/{os.getpid()}/children")

    def running() -> set[str]:
        return set(children.read_text().split())

    before = running()  # the engines of other tests
    task = asyncio.create_task(trials.require(package(endless())))

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
