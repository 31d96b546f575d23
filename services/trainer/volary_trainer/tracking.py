"""What a run reports, kept in the trainer's own tables behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from volary.trainer.v1.run_pb2 import Run
from volary_kit.clock import Clock
from volary_kit.database import Database

from volary_trainer import store


class Tracker(Protocol):
    """Where runs and their metrics are kept."""

    async def save(self, project: str, run_id: str, run: Run) -> None:
        """Keep the run as it is now."""
        ...

    async def log(self, project: str, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of one step."""
        ...


class PostgresTracker:
    """Runs and metrics in Postgres."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def save(self, project: str, run_id: str, run: Run) -> None:
        async with self._database.transaction() as transaction:
            await store.put_run(transaction, project, run_id, run)

    async def log(self, project: str, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
        now_us = self._clock.now_us()
        async with self._database.transaction() as transaction:
            await store.put_points(transaction, project, run_id, step, metrics, now_us)
