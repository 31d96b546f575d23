"""What the judge reads: plain counts and declared guards, as JSON-able dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ERROR_RATE = "error_rate"
LATENCY_QUANTILE = "latency_quantile"
QUALITY = "quality"
PREDICTION_DISTRIBUTION = "prediction_distribution"
BUSINESS = "business"
COUNTED_KINDS = (ERROR_RATE, LATENCY_QUANTILE)
SCORED_KINDS = (QUALITY, BUSINESS)
JUDGED_KINDS = (*COUNTED_KINDS, *SCORED_KINDS, PREDICTION_DISTRIBUTION)
QUANTILES = (0.5, 0.95, 0.99)
BINS = 10
PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
TINY_REGRESSION = "TINY_REGRESSION"
PREDICTIONS_SHIFTED = "PREDICTIONS_SHIFTED"
LABELS_DEPEND_ON_VERSION = "LABELS_DEPEND_ON_VERSION"
PAUSING = (TINY_REGRESSION, PREDICTIONS_SHIFTED, LABELS_DEPEND_ON_VERSION)  # a person looks
INCOMPLETE_EVIDENCE = "INCOMPLETE_EVIDENCE"


@dataclass(frozen=True)
class Guard:
    """One declared comparison of candidate and baseline.

    `alpha` is this guard's share of the chance to roll back a candidate that is as good as the
    baseline; the shares add up over guards. `margin` is the relative worsening that promotion
    must rule out (0.5: a rate ratio of 1.5). `ceiling` is the candidate's event rate that is
    acceptable whatever the baseline does, 0 for none: for `error_rate` the share of errors, for
    `latency_quantile` the share of calls slower than `limit_us`, or, where that is 0, than the
    baseline's highest frozen quantile. `min_effect` is the smallest rise of the event rate,
    absolute, that rolls back; a certain but smaller one pauses. A guard with `promotes` false
    can roll back but is not needed for PASS.

    An error guard rolls back on any ratio above 1. A latency guard does so above 1 + margin: a
    small share fills smaller batches, so equal versions need not have equal latencies.

    `quality` and `business` compare means of scores scaled to [0, 1] (`judge.scores`): there
    `margin` and `min_effect` are absolute, 0.01 is one point of the scale. `higher_is_better`
    says which way worse lies; for paired outcomes and differences, which are losses, it is moot.
    A business metric is worth 0 at `lower` and 1 at `upper`, and no less or more beyond.
    `prediction_distribution` compares ten bins; it pauses, where the shares of the bins differ by
    `min_effect` (total variation) or more, and neither rolls back nor promotes.
    """

    metric: str = "errors"
    kind: str = ERROR_RATE
    alpha: float = 0.01
    margin: float = 0.5
    ceiling: float = 0.05
    limit_us: int = 0
    min_effect: float = 0.002
    promotes: bool = True
    higher_is_better: bool = True
    lower: float = 0.0
    upper: float = 1.0

    @property
    def tolerated_ratio(self) -> float:
        """Return the rate ratio up to which the candidate is not called worse."""
        return 1.0 if self.kind == ERROR_RATE else 1 + self.margin


@dataclass(frozen=True)
class GateRule:
    """What an evaluation before the rollout must show.

    `margin` is in units of the metric: nats for `log_loss`, squared probability for `brier`,
    share of rows for `error`. `method` is `normal` or `empirical_bernstein`.
    """

    metric: str = "log_loss"
    margin: float = 0.01
    alpha: float = 0.01
    method: str = "normal"
    min_rows: int = 1_000


@dataclass(frozen=True)
class Scores:
    """Cumulative sums of scores in [0, 1]: how many, their sum, the sum of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Cumulative counts of one version in one cell; `latency` has one count an edge and one more.

    An error is a failed attempt or a reply whose tier is not `model`. `users` and
    `users_with_error` count distinct sticky keys of this cell. `users_first_error` counts those
    whose first error of the whole rollout fell into this cell, -1 where nobody counts that: only
    with it may the evidence of sticky steps be multiplied.

    `scores` holds what is known of each quality or business metric (one score a call, or a user
    where the split is sticky), `bins` how the predictions fell into the ten frozen bins, by
    metric. Both may lag behind `calls` by as much as they like.
    """

    calls: int = 0
    errors: int = 0
    latency: list[int] = field(default_factory=list)
    users: int = 0
    users_with_error: int = 0
    users_first_error: int = -1
    scores: dict[str, Scores] = field(default_factory=dict)
    bins: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Candidate and baseline within one step and generation of traffic.

    `share` is the candidate's declared share of the calls, in [0, 1]; for a shadow cell it is the
    mirrored fraction of the calls that the baseline answered. `complete` is false when records
    of it may have been lost: then it still counts against the candidate, never for it.
    """

    step: str
    generation: int
    share: float
    candidate: Counts
    baseline: Counts
    shadow: bool = False
    complete: bool = True

    @property
    def event_share(self) -> float:
        """Return the candidate's share of the attempts, hence of the events under equal rates."""
        return self.share / (1 + self.share) if self.shadow else self.share


@dataclass(frozen=True)
class PairedOutcomes:
    """Labelled calls that both versions answered (shadow), by who was wrong; for McNemar's test."""

    metric: str
    pairs: int
    only_candidate_wrong: int
    only_baseline_wrong: int


@dataclass(frozen=True)
class PairedScores:
    """Sums over calls that both versions answered of d = loss(candidate) - loss(baseline).

    Losses are scaled to [0, 1], so d is in [-1, 1] and above 0 where the candidate is worse.
    """

    metric: str
    pairs: int
    total: float
    squares: float


@dataclass(frozen=True)
class PairedBins:
    """Calls that both versions answered, by bin: `counts[baseline's bin][candidate's bin]`."""

    metric: str
    counts: list[list[int]]


@dataclass(frozen=True)
class Inputs:
    """Everything that a verdict depends on; the same inputs always give the same verdict.

    `cells` are in order of generation. `thresholds_us` are the edges frozen before the rollout at
    the baseline's quantiles; empty when there was no traffic to freeze them on, and then every
    edge is tested. `sticky` says that users stay with their version, so users are counted
    instead of calls. `acknowledged` holds the reason codes that a person has accepted.

    `outcomes`, `differences` and `paired_bins` are of mirrored calls, at most one of each metric.
    A quality guard reads the first that names its metric, else the `scores` of the cells.
    `centers` are the baseline's mean scores by metric, frozen before the rollout; 0.5 where none
    is: a center that is off costs power, never validity.
    """

    guards: list[Guard]
    cells: list[Cell]
    edges_us: list[int] = field(default_factory=list)
    thresholds_us: list[int] = field(default_factory=list)
    sticky: bool = False
    acknowledged: list[str] = field(default_factory=list)
    outcomes: list[PairedOutcomes] = field(default_factory=list)
    differences: list[PairedScores] = field(default_factory=list)
    paired_bins: list[PairedBins] = field(default_factory=list)
    centers: dict[str, float] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Inputs:
        """Read what `to_document` wrote."""
        read: dict[str, list[Any]] = {
            "guards": [Guard(**row) for row in document["guards"]],
            "cells": [_cell(row) for row in document["cells"]],
            "outcomes": [PairedOutcomes(**row) for row in document.get("outcomes", [])],
            "differences": [PairedScores(**row) for row in document.get("differences", [])],
            "paired_bins": [PairedBins(**row) for row in document.get("paired_bins", [])],
        }
        return cls(**{**document, **read})


def _cell(row: dict[str, Any]) -> Cell:
    sides = {side: counts_from(row[side]) for side in ("candidate", "baseline")}
    return Cell(**{**row, **sides})


def counts_from(row: dict[str, Any]) -> Counts:
    """Read the counts of one version in one cell as they were stored."""
    scores = {metric: Scores(**sums) for metric, sums in row.get("scores", {}).items()}
    return Counts(**{**row, "scores": scores})
