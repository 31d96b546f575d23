"""Judge closed windows of event time: drift against training, quality against truth."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import NotFound, VolaryError

from volary_monitor.alerts import Alerting, Judgement
from volary_monitor.domain import bins, discovery, distances, quality, windows
from volary_monitor.domain.bins import Reference
from volary_monitor.domain.discovery import Finding
from volary_monitor.domain.policy import DriftRule, Monitor
from volary_monitor.domain.windows import Span
from volary_monitor.judgements import (
    DRIFT,
    QUALITY,
    drift_judgement,
    label_delay_judgement,
    quality_judgement,
    score_judgement,
    volume_judgement,
)
from volary_monitor.peers import Peers, TrainingReference
from volary_monitor.prediction_log import PredictionLog
from volary_monitor.store import policies, predictions, truths
from volary_monitor.store import windows as judged

log = logging.getLogger(__name__)
LOOK_AFTER_S = 1.0
RETRY_S = 0.5
COLUMNS = ("version", "tier", "shadow", "code", "schema_hash", "features", "outputs")


@dataclass(frozen=True)
class Watched:
    """A policy in its project."""

    project: str
    policy: Monitor

    @property
    def model(self) -> str:
        """The model that is watched."""
        return self.policy.spec.model


class Judge:
    """Judges the windows of every policy as they close."""

    def __init__(
        self, database: Database, peers: Peers, written: PredictionLog, clock: Clock
    ) -> None:
        self._database = database
        self._peers = peers
        self._log = written
        self._alerting = Alerting(clock)
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: something came in."""
        self._wake.set()

    async def run(self) -> None:
        """Judge what closes, for ever; a peer or the database away is waited out."""
        while True:
            self._wake.clear()
            try:
                await self.step()
            except VolaryError as error:
                log.warning("windows wait to be judged: %s", error)
                await asyncio.sleep(RETRY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AFTER_S):
                    await self._wake.wait()

    async def step(self) -> int:
        """Judge every window that has closed; return how many judgements that were.

        A model that cannot be judged now does not hold up the others; its error comes last.
        """
        async with self._database.read() as transaction:
            watching = [Watched(*row) for row in await policies.watching(transaction)]
        count, failure = 0, None
        for watched in watching:
            try:
                count += await self._judge(watched)
            except VolaryError as error:
                failure = error
        if failure is not None:
            raise failure
        return count

    async def _judge(self, watched: Watched) -> int:
        by_features = await self._closed(watched, DRIFT)
        by_truth = await self._closed(watched, QUALITY)
        for span in by_features:
            await self._judge_drift(watched, span)
        for span in by_truth:
            await self._judge_quality(watched, span)
        return len(by_features) + len(by_truth)

    async def _closed(self, watched: Watched, kind: str) -> list[Span]:
        """Return closed windows that were not judged; those of quality once truth is in.

        Drift also has the windows without any prediction, up to where truth has been told: a
        model that fell silent closes them by the source of its truth, one window later.
        """
        project, spec = watched.project, watched.policy.spec
        length_us = spec.window.length
        async with self._database.read() as transaction:
            after_us = await judged.last_end(transaction, project, spec.model, kind)
            told_us = await truths.told_us(transaction, project, spec.truth.source, spec.model)
            by_truth_us = None if told_us is None else told_us - spec.truth.give_up_after
            if kind == DRIFT:
                newest_us = await predictions.newest_us(transaction, project, spec.model)
                if newest_us is None:
                    return []
                reach_us = newest_us - spec.window.lateness
                if by_truth_us is not None:
                    reach_us = max(reach_us, by_truth_us - length_us)
            else:
                reach_us = by_truth_us
            if reach_us is None or (after_us is not None and after_us + length_us > reach_us):
                return []
            starts = await predictions.window_starts(
                transaction, project, spec.model, length_us, after_us
            )
        spans = windows.closed(starts, reach_us, length_us)
        if kind == DRIFT:
            until_us = reach_us if told_us is None else min(reach_us, told_us)
            spans += windows.empty(starts, after_us, until_us, length_us)
        return sorted(span for span in spans if after_us is None or span.start_us >= after_us)

    async def _judge_drift(self, watched: Watched, span: Span) -> None:
        counted = _counted(await self._log.read(watched.project, watched.model, span, COLUMNS))
        version = 0 if counted.is_empty() else int(counted["version"].mode().sort()[-1])
        reference, found = await self._features(watched, counted, version)
        score = await self._score(watched, counted, version)
        name = f"projects/{watched.project}/models/{watched.model}/versions/{version}"
        rows = [(each, reference) for each in found]
        rows += [] if score is None else [(score, name)]
        async with self._database.transaction() as transaction:
            if not await self._is_mine(transaction, watched, DRIFT, span):
                return
            await judged.add_drift(transaction, watched.project, watched.model, span, rows)
            spec = watched.policy.spec
            for judgement in (
                drift_judgement(found, spec, span),
                score_judgement(score, version, spec, span),
                volume_judgement(len(counted), spec, span),
            ):
                await self._settle(transaction, watched, judgement)

    async def _features(
        self, watched: Watched, counted: pl.DataFrame, version: int
    ) -> tuple[str, list[Finding]]:
        """Hold the vectors of a window against the training of the version that served most."""
        rule = watched.policy.spec
        reference = await self._reference(watched, version) if version else None
        if reference is None:
            return "", []
        same = counted.filter(pl.col("schema_hash") == reference.schema_hash)
        rows = _matrix(same["features"], len(reference.features))
        if len(rows) < rule.window.min_predictions:
            return reference.training_set, []
        found = await asyncio.to_thread(_findings, rows, reference.features, rule.drift)
        return reference.training_set, found

    async def _score(self, watched: Watched, counted: pl.DataFrame, version: int) -> Finding | None:
        """Hold the scores of that version against those of its registration."""
        if not version:
            return None
        facts = await self._peers.version(watched.project, watched.model, version)
        scores = counted.filter(pl.col("version") == version)["outputs"].list.first().drop_nulls()
        if facts.score is None or len(scores) < watched.policy.spec.window.min_predictions:
            return None
        rows = scores.to_numpy().reshape(-1, 1)
        rule = watched.policy.spec.drift
        (found,) = await asyncio.to_thread(_findings, rows, (facts.score,), rule)
        return found

    async def _reference(self, watched: Watched, version: int) -> TrainingReference | None:
        """Return the training distributions of a version, None where it names no training."""
        try:
            facts = await self._peers.version(watched.project, watched.model, version)
            if not facts.training_set:
                return None
            found = await self._peers.reference(watched.project, facts.training_set)
        except NotFound:
            log.warning("version %d of %s has no reference", version, watched.model)
            return None
        return found if found.features else None

    async def _judge_quality(self, watched: Watched, span: Span) -> None:
        async with self._database.read() as transaction:
            rows = await predictions.scored(transaction, watched.project, watched.model, span)
        measured = await self.measure(watched.project, watched.model, rows)
        passed: list[tuple[int, quality.Breach]] = []
        for version, found in measured.items():
            facts = await self._peers.version(watched.project, watched.model, version)
            rule = watched.policy.spec.quality
            found_breaches = quality.breaches(found, facts.metrics, rule)
            passed += [(version, breach) for breach in found_breaches]
        async with self._database.transaction() as transaction:
            if not await self._is_mine(transaction, watched, QUALITY, span):
                return
            judgement = quality_judgement(measured, passed, watched.policy.spec, span)
            await self._settle(transaction, watched, judgement)
            delay = label_delay_judgement(measured, watched.policy.spec, span)
            await self._settle(transaction, watched, delay)

    async def measure(
        self, project: str, model: str, rows: Sequence[Any]
    ) -> dict[int, quality.Quality]:
        """Return the quality of each version in (version, event_us, score, label) rows."""
        by_version: dict[int, list[Any]] = {}
        for row in rows:
            by_version.setdefault(row.version, []).append(row)
        measured: dict[int, quality.Quality] = {}
        for version, group in sorted(by_version.items()):
            facts = await self._peers.version(project, model, version)
            measured[version] = await asyncio.to_thread(_measured, group, facts.threshold)
        return measured

    async def _is_mine(
        self, transaction: Transaction, watched: Watched, kind: str, span: Span
    ) -> bool:
        """Say whether no other replica has judged the window meanwhile."""
        await judged.lock(transaction, watched.project, watched.model)
        last = await judged.last_end(transaction, watched.project, watched.model, kind)
        return last is None or last <= span.start_us

    async def _settle(
        self, transaction: Transaction, watched: Watched, judgement: Judgement
    ) -> None:
        """Store a judgement and do with its alert what the windows so far ask for."""
        project, model = watched.project, watched.model
        await judged.add(
            transaction, project, model, judgement.kind, judgement.span, bad=judgement.is_bad
        )
        if judgement.is_bad is not None:
            history = await judged.history(transaction, project, model, judgement.kind)
            await self._alerting.settle(transaction, project, watched.policy, judgement, history)


def _findings(rows: np.ndarray, references: Sequence[Reference], rule: DriftRule) -> list[Finding]:
    found = [
        distances.distance(bins.binned(rows[:, i], reference), reference)
        for i, reference in enumerate(references)
    ]
    return discovery.find(found, rule)


def _measured(rows: Sequence[Any], threshold: float) -> quality.Quality:
    labelled = [(r.score, r.label) for r in rows if r.label is not None and r.score is not None]
    pairs = np.array(labelled, dtype=np.float64).reshape(-1, 2)
    return quality.measure(len(rows), pairs[:, 0], pairs[:, 1], threshold)


def _counted(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the answers of the model itself to real traffic."""
    is_answer = (pl.col("tier") == "model") & (pl.col("code") == 0)
    return frame.filter(is_answer & ~pl.col("shadow"))


def _matrix(vectors: pl.Series, width: int) -> np.ndarray:
    """Return vectors of one width as rows x features; of another width they are left out."""
    flat = vectors.filter(vectors.list.len() == width).explode().to_numpy()
    return np.asarray(flat, dtype=np.float64).reshape(-1, width)
