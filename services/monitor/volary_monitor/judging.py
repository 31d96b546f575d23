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
from volary_monitor.domain.discovery import Finding
from volary_monitor.domain.policy import Monitor
from volary_monitor.domain.windows import Span
from volary_monitor.peers import Peers, TrainingReference
from volary_monitor.prediction_log import PredictionLog
from volary_monitor.store import policies, predictions, truths
from volary_monitor.store import windows as judged

log = logging.getLogger(__name__)
DRIFT, QUALITY, LABEL_DELAY, VOLUME = "drift", "quality", "label_delay", "volume"
LOOK_AFTER_S = 1.0
RETRY_S = 0.5
SHOWN = 5
NO_ROWS = np.empty((0, 0))
COLUMNS = ("version", "tier", "shadow", "code", "schema_hash", "features")


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
        """Return closed windows that were not judged; those of quality once truth is in."""
        project, spec = watched.project, watched.policy.spec
        length_us = spec.window.length
        async with self._database.read() as transaction:
            after_us = await judged.last_end(transaction, project, spec.model, kind)
            if kind == DRIFT:
                seen_us = await predictions.newest_us(transaction, project, spec.model)
                wait_us = spec.window.lateness
            else:
                source = spec.truth.source
                seen_us = await truths.told_us(transaction, project, source, spec.model)
                wait_us = spec.truth.give_up_after
            if seen_us is None or (after_us is not None and after_us + length_us > seen_us):
                return []
            starts = await predictions.window_starts(
                transaction, project, spec.model, length_us, after_us
            )
        return windows.closed(starts, seen_us, length_us, wait_us)

    async def _judge_drift(self, watched: Watched, span: Span) -> None:
        counted = _counted(await self._log.read(watched.project, watched.model, span, COLUMNS))
        reference, rows = await self._comparable(watched, counted)
        rule = watched.policy.spec
        findings: list[Finding] = []
        if reference is not None and len(rows) >= rule.window.min_predictions:
            findings = await asyncio.to_thread(_findings, rows, reference, rule.drift)
        async with self._database.transaction() as transaction:
            if not await self._is_mine(transaction, watched, DRIFT, span):
                return
            name = reference.training_set if reference is not None else ""
            await judged.add_drift(
                transaction, watched.project, watched.model, span, findings, name
            )
            await self._settle(transaction, watched, drift_judgement(findings, watched, span))
            volume = volume_judgement(len(counted), watched, span)
            await self._settle(transaction, watched, volume)

    async def _comparable(
        self, watched: Watched, counted: pl.DataFrame
    ) -> tuple[TrainingReference | None, np.ndarray]:
        """Return the reference of the version that served most, and the vectors of its schema."""
        if counted.is_empty():
            return None, NO_ROWS
        version = int(counted["version"].mode().sort()[-1])
        reference = await self._reference(watched, version)
        if reference is None:
            return None, NO_ROWS
        same = counted.filter(pl.col("schema_hash") == reference.schema_hash)
        return reference, _matrix(same["features"], len(reference.features))

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
            judgement = quality_judgement(measured, passed, watched, span)
            await self._settle(transaction, watched, judgement)
            delay = label_delay_judgement(measured, watched, span)
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


def drift_judgement(findings: list[Finding], watched: Watched, span: Span) -> Judgement:
    """Return what the findings of a window mean; without findings it is not judged."""
    rule = watched.policy.spec.drift
    drifted = [found for found in findings if found.has_drifted]
    names = ", ".join(found.distance.feature for found in drifted[:SHOWN])
    return Judgement(
        kind=DRIFT,
        span=span,
        is_bad=None if not findings else len(drifted) >= rule.min_features,
        targets=[found.distance.feature for found in drifted],
        value=float(len(drifted)),
        threshold=float(rule.min_features),
        summary=f"{len(drifted)} of {len(findings)} features drifted from training: {names}",
    )


def quality_judgement(
    measured: dict[int, quality.Quality],
    passed: list[tuple[int, quality.Breach]],
    watched: Watched,
    span: Span,
) -> Judgement:
    """Return what the measured versions mean; without enough truth the window is not judged."""
    rule = watched.policy.spec.quality
    is_mature = any(
        found.coverage >= rule.min_coverage and found.labelled >= rule.min_labelled
        for found in measured.values()
    )
    words = [
        f"{breach.metric} of version {version} is {breach.value:.4f}, its bound {breach.bound:.4f}"
        for version, breach in passed
    ]
    return Judgement(
        kind=QUALITY,
        span=span,
        is_bad=bool(passed) if is_mature else None,
        targets=[f"versions/{version}" for version in sorted({each for each, _ in passed})],
        value=passed[0][1].value if passed else 0.0,
        threshold=passed[0][1].bound if passed else 0.0,
        summary="; ".join(words),
    )


def label_delay_judgement(
    measured: dict[int, quality.Quality], watched: Watched, span: Span
) -> Judgement:
    """Return whether too little truth came before it was given up."""
    bound = watched.policy.spec.quality.min_coverage
    total = sum(found.predictions for found in measured.values())
    labelled = sum(found.labelled for found in measured.values())
    coverage = labelled / total if total else 0.0
    return Judgement(
        kind=LABEL_DELAY,
        span=span,
        is_bad=None if not total else coverage < bound,
        targets=[],
        value=coverage,
        threshold=bound,
        summary=f"the truth of {labelled} of {total} predictions is known",
    )


def volume_judgement(count: int, watched: Watched, span: Span) -> Judgement:
    """Return whether a window had too few predictions to judge."""
    bound = watched.policy.spec.window.min_predictions
    return Judgement(
        kind=VOLUME,
        span=span,
        is_bad=count < bound,
        targets=[],
        value=float(count),
        threshold=float(bound),
        summary=f"{count} predictions, {bound} are needed to judge a window",
    )


def _findings(rows: np.ndarray, reference: TrainingReference, rule: Any) -> list[Finding]:
    found = [
        distances.distance(bins.binned(rows[:, i], feature), feature)
        for i, feature in enumerate(reference.features)
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
