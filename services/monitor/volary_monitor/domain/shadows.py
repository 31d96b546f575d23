"""How a shadow's answers differ from the served ones, request by request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

BINS = 10
FREEZE_PAIRS = 100  # the first pairs cut the bins, the later ones are counted in them
MOST_SLICES = 50
LEAST_OF_SLICE = 20
COLUMNS = (
    "request_key", "version", "shadow", "route", "outputs", "latency_us", "code", "tier",
    "entity_keys", "subject", "replied_at",
)  # fmt: skip
ENTRIES = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))  # a map has no explode
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Pairing:
    """Which two versions, and from which score on the decision is a yes."""

    candidate: int
    baseline: int
    threshold: float = 0.5


@dataclass(frozen=True)
class Side:
    """What one version did: calls, failures, times in the replica in microseconds."""

    calls: int = 0
    errors: int = 0
    p50_us: int = 0
    p99_us: int = 0


@dataclass(frozen=True)
class Slice:
    """The pairs of one entity."""

    entity: str
    key: str
    pairs: int
    agreeing: int
    mean_shift: float


@dataclass(frozen=True)
class Labelled:
    """The pairs whose truth is known: whose decision alone was wrong, and squared errors.

    `total` and `squares` are sums of d = (candidate's squared error) - (baseline's) and of d^2.
    """

    pairs: int = 0
    only_candidate_wrong: int = 0
    only_baseline_wrong: int = 0
    total: float = 0.0
    squares: float = 0.0


@dataclass(frozen=True)
class ShadowDiff:
    """Everything that the pairs say; shifts are candidate less baseline.

    `edges` cut the baseline's first `FREEZE_PAIRS` scores into tenths and stay; `bins[b][c]` counts
    the later pairs whose baseline score is in bin b and whose candidate score is in bin c.
    """

    pairs: int = 0
    agreeing: int = 0
    mean_shift: float = 0.0
    mean_absolute_shift: float = 0.0
    largest_shift: float = 0.0
    candidate: Side = field(default_factory=Side)
    baseline: Side = field(default_factory=Side)
    edges: list[float] = field(default_factory=list)
    bins: list[list[int]] = field(default_factory=list)
    labelled: Labelled = field(default_factory=Labelled)
    slices: list[Slice] = field(default_factory=list)


def compare(frame: pl.DataFrame, labels: Mapping[str, float], pairing: Pairing) -> ShadowDiff:
    """Pair the rows of `COLUMNS` by request key; a request that was tried twice counts once."""
    ours = _of(frame, pairing.candidate, is_shadow=True)
    theirs = _of(frame, pairing.baseline, is_shadow=False)
    pairs = _answered(ours).join(_answered(theirs), on="request_key", suffix="_baseline")
    pairs = pairs.sort("replied_at_baseline", "request_key")
    if pairs.is_empty():
        return ShadowDiff(candidate=_side(ours), baseline=_side(theirs))
    ours_scores, their_scores = _scores(pairs, "score"), _scores(pairs, "score_baseline")
    shift = ours_scores - their_scores
    agree = (ours_scores >= pairing.threshold) == (their_scores >= pairing.threshold)
    edges = _edges(their_scores)
    later = slice(FREEZE_PAIRS, None)
    return ShadowDiff(
        pairs=len(pairs),
        agreeing=int(agree.sum()),
        mean_shift=float(shift.mean()),
        mean_absolute_shift=float(np.abs(shift).mean()),
        largest_shift=float(np.abs(shift).max()),
        candidate=_side(ours),
        baseline=_side(theirs),
        edges=edges.tolist(),
        bins=_bins(edges, their_scores[later], ours_scores[later]),
        labelled=_labelled(pairs, labels, ours_scores, their_scores, pairing.threshold),
        slices=_slices(pairs.with_columns(shift=shift, agree=agree)),
    )


def _of(frame: pl.DataFrame, version: int, *, is_shadow: bool) -> pl.DataFrame:
    return frame.filter(pl.col("version") == version, pl.col("shadow") == is_shadow).with_columns(
        score=pl.col("outputs").list.first(),
        is_answered=(pl.col("code") == 0) & (pl.col("tier") == "model"),
    )


def _answered(side: pl.DataFrame) -> pl.DataFrame:
    sound = side.filter(
        pl.col("is_answered") & pl.col("score").is_finite() & (pl.col("request_key") != "")
    )
    return sound.unique("request_key", keep="first", maintain_order=True)


def _side(rows: pl.DataFrame) -> Side:
    if rows.is_empty():
        return Side()
    p50_us, p99_us = np.quantile(rows["latency_us"].to_numpy(), [0.5, 0.99], method="higher")
    return Side(len(rows), int((~rows["is_answered"]).sum()), int(p50_us), int(p99_us))


def _scores(pairs: pl.DataFrame, column: str) -> Scores:
    return pairs[column].to_numpy().astype(np.float64)


def _edges(baseline: Scores) -> Scores:
    """Return the edges that the first scores fix, none before there are enough."""
    if len(baseline) < FREEZE_PAIRS:
        return np.array([])
    tenths = np.arange(1, BINS) / BINS
    return np.unique(np.quantile(baseline[:FREEZE_PAIRS], tenths, method="higher"))


def _bins(edges: Scores, baseline: Scores, candidate: Scores) -> list[list[int]]:
    counts = np.zeros((BINS, BINS), dtype=np.int64)
    rows = np.searchsorted(edges, baseline, side="right")
    columns = np.searchsorted(edges, candidate, side="right")
    np.add.at(counts, (rows, columns), 1)
    return counts.tolist()


def _labelled(
    pairs: pl.DataFrame,
    labels: Mapping[str, float],
    candidate: Scores,
    baseline: Scores,
    threshold: float,
) -> Labelled:
    known = np.array([subject in labels for subject in pairs["subject_baseline"]])
    if not known.any():
        return Labelled()
    truth = np.array([labels[subject] for subject in pairs["subject_baseline"].filter(known)])
    ours, theirs = candidate[known], baseline[known]
    ours_wrong = (ours >= threshold) != (truth >= threshold)
    theirs_wrong = (theirs >= threshold) != (truth >= threshold)
    difference = (ours - truth) ** 2 - (theirs - truth) ** 2
    return Labelled(
        pairs=len(truth),
        only_candidate_wrong=int((ours_wrong & ~theirs_wrong).sum()),
        only_baseline_wrong=int((theirs_wrong & ~ours_wrong).sum()),
        total=float(difference.sum()),
        squares=float((difference**2).sum()),
    )


def _slices(pairs: pl.DataFrame) -> list[Slice]:
    found = (
        pairs.select(pl.col("entity_keys_baseline").cast(ENTRIES).alias("entry"), "shift", "agree")
        .explode("entry")
        .drop_nulls("entry")
        .unnest("entry")
        .group_by("key", "value")
        .agg(
            pairs=pl.len(),
            agreeing=pl.col("agree").sum(),
            mean_shift=pl.col("shift").mean(),
        )
        .filter(pl.col("pairs") >= LEAST_OF_SLICE)
        .sort("pairs", "key", "value", descending=[True, False, False])
        .head(MOST_SLICES)
    )
    return [
        Slice(row["key"], row["value"], row["pairs"], row["agreeing"], row["mean_shift"])
        for row in found.iter_rows(named=True)
    ]
