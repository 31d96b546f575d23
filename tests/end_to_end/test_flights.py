"""The whole loop on a slice of the flights, with the rollout's worker killed in mid-canary.

Given a mesh from nothing, when the story is told, then a version is promoted on evidence, a bad
one is rolled back, no call fails by a change of traffic, and one trace leads from Envoy to Redis.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from volary_client import Client

from tests.end_to_end.leakage import Landings

PORT_BASE = 18_700
ROOT = Path(__file__).parents[2]
STORY_S = 900
CANARY = "CANARY"


def volary(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "volary_cli", *words]
    return subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, timeout=timeout_s, check=False
    )


def pid_of(data_dir: Path, component: str) -> int:
    status = json.loads(volary("status", "--json", "--data-dir", str(data_dir)).stdout)
    return next(row["pid"] for row in status["components"] if row["name"] == component)


class Killer(threading.Thread):
    """Kill the worker once, when a rollout with a baseline is in its canary."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(daemon=True)
        self._data_dir = data_dir
        self._is_over = threading.Event()
        self.killed: dict[str, Any] = {}

    def run(self) -> None:
        deadline_s = time.monotonic() + STORY_S
        while not self._is_over.wait(2.0) and time.monotonic() < deadline_s:
            found = self._status()
            if found.get("state") == CANARY:
                os.kill(pid_of(self._data_dir, "workflows"), signal.SIGKILL)
                self.killed = found
                return

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def _status(self) -> dict[str, Any]:
        done = volary(
            "rollout", "status", "flights-delay", "--json", "--data-dir", str(self._data_dir)
        )
        return json.loads(done.stdout) if done.returncode == 0 else {}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("story") / "mesh"
    yield folder
    volary("down", "--data-dir", str(folder), timeout_s=120)


@pytest.fixture(scope="module")
def told(data_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of the story, and the rollout that was in its canary at the kill."""
    killer = Killer(data_dir)
    killer.start()
    words = ["demo", "flights", "--slice", "small", "--json", "--port-base", str(PORT_BASE)]
    done = volary(*words, "--data-dir", str(data_dir), timeout_s=STORY_S)
    killer.stop()
    assert done.returncode == 0, done.stderr[-6_000:]
    return json.loads(done.stdout), killer.killed


pytestmark = pytest.mark.timeout(STORY_S + 200)


def test_a_better_version_is_promoted_and_a_bad_one_goes_back(told: Any) -> None:
    report, _ = told
    assert report["promoted"] == [1, 2]
    assert report["rolled_back"] == [3]
    production = report["production"]
    assert (production["version"], production["previous"], production["gate"]) == (2, 1, "PASS")
    assert report["retrain_cause"] in ("alert", "schedule")


def test_the_rollout_ended_as_it_would_have_although_its_worker_was_killed(told: Any) -> None:
    report, killed = told
    assert killed["state"] == CANARY
    steps = [row["step"] for row in report["deployments"]]
    second = steps[steps.index("shadow") :]
    second = second[: second.index("promote") + 1]
    # a step that lost records is set again, under a new generation
    distinct = [step for i, step in enumerate(second) if step not in second[:i]]
    assert distinct == ["shadow", "canary", "50", "bake", "promote"]


def test_no_call_failed_by_a_change_of_traffic_and_the_fault_hurt_a_few(told: Any) -> None:
    calls = told[0]["calls"]
    assert calls["failed_by_traffic_change"] == 0, calls
    assert 0 < calls["hurt_by_fault"] < 0.02 * calls["total"]
    assert calls["by_version"]["1"] > 1_000
    assert calls["by_version"]["2"] > 500


def test_truth_came_in_and_drift_was_found(told: Any) -> None:
    report, _ = told
    first = next(row for row in report["accuracy"] if row["version"] == 1)
    assert first["labelled"] > 0.5 * first["predictions"] > 500
    assert 0.55 < first["auc"] < 1
    assert report["drift"]


def test_nothing_was_learned_that_was_not_known_when_a_flight_left(
    told: Any, data_dir: Path
) -> None:
    status = json.loads(volary("status", "--json", "--data-dir", str(data_dir)).stdout)
    with Client(status["gateway"], status["api_key"]) as client:
        table = client.read_training_set(told[0]["production"]["training_set"])
    asked_us = table["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    last = datetime.fromtimestamp(int(asked_us.max()) / 1e6, UTC)
    landings, subjects = Landings(last + timedelta(days=1)), table["subject"].to_pylist()
    counted = table["origin-delays.flights_3h"].to_numpy()
    assert len(table) > 10_000
    assert np.array_equal(counted, landings.counted(subjects, asked_us))
    ahead = landings.counted(subjects, asked_us, ahead_us=60_000_000)
    assert not np.array_equal(counted, ahead)  # a minute of the future would have been seen


def test_one_trace_leads_from_envoy_to_redis(told: Any) -> None:
    edges: set[tuple[str, str]] = set()

    def walk(node: dict[str, Any]) -> None:
        for child in node["children"]:
            edges.add((node["service"], child["service"]))
            walk(child)

    names: set[str] = set()

    def collect(node: dict[str, Any]) -> None:
        names.add(node["name"])
        for child in node["children"]:
            collect(child)

    for root in told[0]["trace"]["roots"]:
        walk(root)
        collect(root)
    assert {("envoy", "volary-inference"), ("volary-inference", "volary-features")} <= edges
    assert any("redis" in name.lower() for name in names), names


def test_a_version_in_smaller_numbers_is_a_version_of_its_own(told: Any, data_dir: Path) -> None:
    words = ("variant", "flights-delay", "2", "--precision", "int8", "--data-dir", str(data_dir))
    limits = ("--tolerance", "0.05", "--margin", "0.01")
    done = volary(*words, *limits, "--json", timeout_s=200)
    assert done.returncode == 0, done.stderr[-4_000:]
    found = json.loads(done.stdout)
    assert found["version"] == "projects/default/models/flights-delay/versions/4"
    assert found["digest"].startswith("sha256:")
    assert 0 < found["largest error"] <= 0.05
    refused = volary(*words, "--tolerance", "0.0000001", timeout_s=200)
    assert (refused.returncode, "VARIANT_REFUSED" in refused.stderr) == (5, True), refused.stderr


@pytest.mark.parametrize("component", ["envoy", "inference-0", "gateway"])
def test_what_is_killed_comes_back_by_itself(told: Any, data_dir: Path, component: str) -> None:
    before = pid_of(data_dir, component)
    os.kill(before, signal.SIGKILL)
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        status = json.loads(volary("status", "--json", "--data-dir", str(data_dir)).stdout)
        row = next(each for each in status["components"] if each["name"] == component)
        if row["pid"] not in (None, before) and row["health"] == "ready":
            assert row["restarts"] >= 1
            break
        time.sleep(0.25)
    else:
        pytest.fail(f"{component} did not come back: {row}")
    reply = volary("production", "flights-delay", "--json", "--data-dir", str(data_dir))
    assert reply.returncode == 0, reply.stderr
