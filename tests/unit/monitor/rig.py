"""A monitor in small: real Postgres, its own files, and peers that answer from a table."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from volary.events.v1 import event_pb2
from volary.monitor.v1 import monitor_service_pb2 as pb
from volary.values.v1 import value_pb2
from volary_cli.launcher.engines import free_port
from volary_kit.database import Database
from volary_kit.documents import parse_documents
from volary_kit.testing import ManualClock, called
from volary_kit.timestamps import from_us
from volary_monitor.domain.actions import Allowed
from volary_monitor.domain.bins import Reference
from volary_monitor.handlers.monitor import MonitorHandler
from volary_monitor.intake import PredictionIntake, TruthIntake
from volary_monitor.judging import Judge
from volary_monitor.peers import TrainingReference, VersionFacts
from volary_monitor.prediction_log import Limits, PredictionLog
from volary_monitor.shadow_reader import ShadowReader

DAY_US = 86_400_000_000
START_US = 15_706 * DAY_US  # 2013-01-01
SET = "projects/default/trainingSets/t1"
POLICY = """\
kind: Monitor
name: m
owner: team
on_call: pager
spec:
  model: m
  truth:
    source: landings
    subject_column: id
    label_column: delay
    label_threshold: 15
    give_up_after: 1d
  window: {length: 1d, lateness: 1h, min_predictions: 50}
  drift: {min_shift_sd: 0.5, min_psi: 0.5, consecutive_windows: 2, resolve_windows: 2}
  quality: {min_coverage: 0.5, min_labelled: 10, max_log_loss_increase: 0.2}
  alerts:
    drift: {severity: warning, retrain: true}
    quality: {severity: critical}
  retrain: {training: t, cooldown: 3d}
"""


class TablePeers:
    """Answers what a registry and a feature store would of version 1 and its training."""

    def __init__(self) -> None:
        self.facts = {1: VersionFacts(0.5, {"log_loss": 0.4}, SET)}

    async def version(self, project: str, model: str, version: int) -> VersionFacts:
        return self.facts.get(version, VersionFacts(0.5, {}, ""))

    async def reference(self, project: str, training_set: str) -> TrainingReference:
        edges = np.linspace(-2, 2, 9)
        values = np.random.default_rng(0).normal(size=10_000)
        counts = np.bincount(np.searchsorted(edges, values), minlength=10)
        features = [
            Reference(name, edges, counts, 0.0, 1.0, float(values.min()), float(values.max()))
            for name in ("v.a", "v.b")
        ]
        return TrainingReference(training_set, "h1", tuple(features))


class Rig:
    """The parts of the monitor, put together as its service does."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.clock = ManualClock()
        self.folder = folder / "predictions"
        self.peers = TablePeers()
        self.log = PredictionLog(self.folder, database, self.clock, Limits(100, 60.0, 2))
        self.judge = Judge(database, self.peers, self.log, self.clock)
        self.handler = MonitorHandler(
            database,
            self.judge,
            ShadowReader(database, self.log),
            self.clock,
            Allowed(lambda _: True, frozenset({"Review@reviews"})),
        )
        self.predictions = PredictionIntake(database, self.clock, self.judge.wake)
        self.truths = TruthIntake(database, self.judge.wake)

    async def apply(self, text: str = POLICY, project: str = "default"):
        request = pb.ApplyMonitorPolicyRequest()
        (document,) = parse_documents(text, "x")
        request.monitor_policy.name = f"projects/{project}/monitorPolicies/{document.data['name']}"
        request.monitor_policy.document.update(document.data)
        with called(project=project):
            return await self.handler.ApplyMonitorPolicy(request, None)

    async def ask(self, method: str, request, project: str = "default"):
        with called(project=project, timeout_s=30):
            return await getattr(self.handler, method)(request, None)

    async def day(self, number: int, shift: float = 0.0, rows: int = 200, version: int = 1):
        """Serve one day of traffic whose first feature is shifted."""
        generator = np.random.default_rng(100 + number)
        vectors = generator.normal(size=(rows, 2)) + np.array([shift, 0.0])
        step_us = DAY_US // rows
        await self.predictions(
            [
                prediction(
                    f"{number}-{version}-{i}",
                    START_US + number * DAY_US + i * step_us,
                    features=list(vector),
                    version=version,
                )
                for i, vector in enumerate(vectors)
            ]
        )

    async def land(self, number: int, rows: int, delay: float, version: int = 1):
        """Tell the truth of a day's first rows."""
        base_us = START_US + (number + 1) * DAY_US
        await self.truths([landing(f"{number}-{version}-{i}", delay, base_us) for i in range(rows)])

    async def tell(self, day: int) -> None:
        """Move the truth's watermark to the start of a day."""
        watermark = event_pb2.WatermarkEvent(
            source="landings", watermark=from_us(START_US + day * DAY_US)
        )
        await self.truths([event_pb2.Event(project="default", watermark=watermark)])


def prediction(
    subject: str,
    event_us: int,
    *,
    score: float = 0.2,
    features: list[float] | None = None,
    version: int = 1,
    project: str = "default",
    **more,
) -> event_pb2.Event:
    found = event_pb2.PredictionEvent(
        prediction_id=f"{subject}.{version}.0",
        model="m",
        version=version,
        tier="model",
        subject=subject,
        feature_set="f@1",
        schema_hash="h1",
        features=features or [0.0, 0.0],
        outputs=[score],
        entity_keys={"plane": "N1", "carrier": "AA"},
    )
    for name, value in more.items():
        setattr(found, name, value)
    instant = from_us(event_us)
    return event_pb2.Event(
        id=f"e-{subject}-{version}",
        project=project,
        event_time=instant,
        known_at=instant,
        prediction=found,
    )


def landing(subject: str, delay: float, known_us: int, source: str = "landings"):
    record = value_pb2.Record(
        fields={
            "id": value_pb2.Value(string_value=subject),
            "delay": value_pb2.Value(number_value=delay),
        }
    )
    return event_pb2.Event(
        id=f"l-{subject}-{known_us}",
        project="default",
        known_at=from_us(known_us),
        source_record=event_pb2.SourceRecordEvent(source=source, record_id=subject, record=record),
    )


@asynccontextmanager
async def process(
    url: str, redis_url: str, folder: Path, more: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    env = os.environ | {
        "VOLARY_MONITOR_PORT": str(free_port()),
        "VOLARY_MONITOR_METRICS_PORT": str(free_port()),
        "VOLARY_MONITOR_DATABASE_URL": url.replace("+asyncpg", ""),
        "VOLARY_MONITOR_REDIS_URL": redis_url,
        "VOLARY_MONITOR_DATA_DIR": str(folder),
        "VOLARY_MONITOR_DRAIN_DELAY_S": "0",
        "VOLARY_MONITOR_LOG_ROWS": "500",
        "VOLARY_MONITOR_LOG_AGE_S": "0.5",
        **(more or {}),
    }
    with (folder / "log").open("ab") as log:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "volary_monitor", env=env, stderr=log
        )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        await running.wait()
