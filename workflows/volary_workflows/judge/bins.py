"""E-processes on the distribution of predictions, in ten bins frozen before the rollout.

A better model should predict otherwise, so this evidence asks a person to look; it neither rolls
back nor promotes. All values are natural logarithms.

Split traffic: a call goes to the candidate with the known share q whatever bin its answer falls
into, when both versions answer alike. So within bin j the odds of the candidate are those of the
split, and the likelihood ratio of odds that are t times those (`evidence.log_ratio_cells`, with
calls as events) is a bet on bin j. Each call touches one bin, so the product over bins of each
bin's mixture over t is an e-process, and so is the product over cells. With 3/4 of each mixture
on t = 1 nine bins that stay as they were cost 9 log(4/3) = 2.6 of log evidence.

Mirrored calls: both versions answer the same call, however dependently. For a set B of bins,
d = 1{candidate in B} - 1{baseline in B} has mean 0 when the distributions agree, so that the
product of 1 + k d is an e-process for any -1 < k < 1: the bet of `means.OutcomeComparison`. The
sets are the ten bins and the nine tails, in equal parts; only pairs on both sides of B matter.

Both are bets in the sense of Shafer, "Testing by betting", JRSS A 184, 2021, against the
hypothesis of homogeneity, as are the sequential two-sample tests of Turner, Ly and Grunwald,
"Generic E-variables for exact sequential k-sample tests", 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volary_workflows.judge.evidence import (
    log_mean,
    log_ratio_cells,
    start_weights,
)
from volary_workflows.judge.inputs import BINS, Cell, PairedBins
from volary_workflows.judge.means import STAKES
from volary_workflows.judge.series import Floats, Series

ODDS = np.array([1.0, 1 / 4, 1 / 2, 1 / 1.4, 1 / 1.15, 1.15, 1.4, 2.0, 4.0])
WEIGHTS_OF_ODDS = np.array([0.75, *[0.25 / 8] * 8])


@dataclass(frozen=True)
class BinComparison:
    """Counts by cell and bin, shape [cells, bins]; each cell's share is the candidate's."""

    shares: Floats
    candidate: Floats
    baseline: Floats
    is_per_step: bool = False

    @property
    def sizes(self) -> tuple[int, int]:
        """Return how many predictions of candidate and baseline it rests on."""
        return int(self.candidate.sum()), int(self.baseline.sum())

    def log_differs(self) -> float:
        """Return the evidence against "both versions predict alike"."""
        series = Series(
            "predictions",
            np.broadcast_to(self.shares, (self.candidate.shape[1], len(self.shares))),
            self.candidate.T,
            self.candidate.T,
            self.baseline.T,
            self.baseline.T,
        )
        logs = log_ratio_cells(series, ODDS, bound=1.0)  # [bins, cells, odds]
        if self.is_per_step:
            each = log_mean(logs, WEIGHTS_OF_ODDS).sum(axis=0)
            return float((each + np.log(start_weights(len(self.shares)))).max())
        return float(log_mean(logs.sum(axis=1), WEIGHTS_OF_ODDS).sum())

    def effect(self) -> float:
        """Return the total variation distance, compared within each cell and then added up."""
        ours, theirs = self.candidate.sum(axis=1), self.baseline.sum(axis=1)
        used = (ours > 0) & (theirs > 0)
        if not used.any():
            return 0.0
        expected = self.baseline[used] / theirs[used, None] * ours[used, None]
        excess = (self.candidate[used] - expected).sum(axis=0)
        return float(np.abs(excess).sum() / (2 * ours[used].sum()))


@dataclass(frozen=True)
class PairComparison:
    """Pairs by the baseline's bin (rows) and the candidate's (columns)."""

    counts: Floats

    @property
    def sizes(self) -> tuple[int, int]:
        """Return how many predictions of candidate and baseline it rests on."""
        total = int(self.counts.sum())
        return total, total

    def log_differs(self) -> float:
        """Return the evidence against "both versions predict alike"."""
        only_ours = np.einsum("sj,ij,si->s", SETS, self.counts, 1 - SETS)
        only_theirs = np.einsum("sj,ij,si->s", 1 - SETS, self.counts, SETS)
        stakes = np.concatenate([STAKES, -STAKES])
        logs = only_ours[:, None] * np.log1p(stakes) + only_theirs[:, None] * np.log1p(-stakes)
        return float(log_mean(logs.ravel(), np.full(logs.size, 1 / logs.size)))

    def effect(self) -> float:
        """Return the total variation distance of the two distributions."""
        total = float(self.counts.sum())
        difference = self.counts.sum(axis=0) - self.counts.sum(axis=1)
        return float(np.abs(difference).sum() / (2 * total)) if total else 0.0


def _sets() -> Floats:
    """Return the sets that are bet on, as indicators of shape [sets, bins]."""
    tails = np.tril(np.ones((BINS, BINS)))[:-1]
    return np.concatenate([np.eye(BINS), tails])


SETS = _sets()


def compare_cells(metric: str, cells: list[Cell], *, is_sticky: bool) -> BinComparison | None:
    """Return the comparison of the served predictions; None before both versions have some."""
    used = [
        cell
        for cell in cells
        if not cell.shadow and (metric in cell.candidate.bins or metric in cell.baseline.bins)
    ]
    if not used:
        return None
    empty = [0] * BINS
    return BinComparison(
        np.array([cell.share for cell in used]),
        np.array([cell.candidate.bins.get(metric, empty) for cell in used], dtype=np.float64),
        np.array([cell.baseline.bins.get(metric, empty) for cell in used], dtype=np.float64),
        is_per_step=is_sticky,
    )


def compare_pairs(paired: PairedBins) -> PairComparison:
    """Return the comparison of mirrored predictions."""
    return PairComparison(np.array(paired.counts, dtype=np.float64))
