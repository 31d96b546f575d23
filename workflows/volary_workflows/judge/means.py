"""E-processes on means of bounded scores: quality with late labels, and metrics of the business.

A comparison says how much worse the candidate is: its effect is E[loss of the candidate] - E[loss
of the baseline], on a scale where losses lie in [0, 1]. Above 0 is worse. It needs sums alone, so
labels may come as late as they like; the order is that of their arrival, and the null is about
the mean of each score given what arrived before it. All values are natural logarithms.

Paired outcomes, d in {-1, 0, 1} for "only the baseline was wrong", "both or none", "only the
candidate was". For a stake k >= 0 the product over pairs of 1 + k (d - m) has expectation <= 1 when
E[d] <= m, as long as no factor is negative; it depends on the three counts alone. With m = 0 and
k = 2 p - 1 it is the likelihood ratio of p against 1/2 among the discordant pairs: McNemar's test
(Psychometrika 12, 1947) made sequential (Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", JRSS B 86, 2024, section 4). With k <= 0 it tests E[d] >= m.

Bounded scores x >= -1, empirical Bernstein: for 0 <= k < 1 and psi(k) = -log(1 - k) - k,

    exp(k (x - m) - psi(k) x^2) has expectation <= exp(-k m) (1 + k m) <= 1 when E[x] <= m

(Fan, Grama and Liu, Electronic Journal of Probability 20, 2015, lemma 4.1; Howard, Ramdas,
McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
Statistics 49, 2021, theorem 4, with a prediction of 0 for each score: no order is needed then).
With -x in place of x it tests E[x] >= m. Its inversion in m is a confidence sequence.

Split traffic: a call (a user, where sticky) goes to the candidate, A = 1, with the known share q,
drawn independently of its loss y under either version. The score x = (A - q)(y - c), c frozen
before the rollout, lies in [-1, 1] and has the mean q (1 - q) effect whatever the hour does to the
losses; so cells of a ramp add up, and a center that is off costs power alone. The variance of
x / (q (1 - q)) is that of a difference of means when c is the mean loss (the augmented
inverse-probability score of Robins, Rotnitzky and Zhao, JASA 89, 1994, with a constant in place
of a regression).

A mixture over a grid of stakes is again an e-process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from volary_workflows.judge.evidence import log_mean, log_started, start_weights, suffix_sums
from volary_workflows.judge.inputs import Cell, Guard, PairedOutcomes, PairedScores, Scores
from volary_workflows.judge.series import Floats

STAKES = np.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 0.9])
UNIFORM = np.full(len(STAKES), 1 / len(STAKES))
PENALTIES = -np.log1p(-STAKES) - STAKES
INTERVAL_PRECISION = 1e-6


class Comparison(Protocol):
    """How much worse the candidate's losses are; evidence as natural logarithms."""

    @property
    def size(self) -> float:
        """Return how many pairs, or scores of both versions, it rests on."""
        ...

    def effect(self) -> float:
        """Return the estimate of the effect."""
        ...

    def log_above(self, bound: float) -> float:
        """Return the evidence against "the effect is `bound` or less", begun at any cell."""
        ...

    def log_below(self, bound: float) -> float:
        """Return the evidence against "the effect is `bound` or more"."""
        ...

    def log_beyond(self, bound: float) -> float:
        """Return the evidence against "the effect is `bound` or less" over all cells."""
        ...

    def extended(self, factor: float) -> Comparison:
        """Return it with `factor` times its scores, at the same means."""
        ...


@dataclass(frozen=True)
class OutcomeComparison:
    """Pairs in which only the candidate was wrong, only the baseline was, and the others."""

    worse: float
    better: float
    same: float

    @classmethod
    def of(cls, pairs: PairedOutcomes) -> OutcomeComparison:
        """Return the comparison of stored counts."""
        worse, better = pairs.only_candidate_wrong, pairs.only_baseline_wrong
        return cls(worse, better, pairs.pairs - worse - better)

    @property
    def size(self) -> float:
        return self.worse + self.better + self.same

    def effect(self) -> float:
        return (self.worse - self.better) / max(self.size, 1.0)

    def log_above(self, bound: float) -> float:
        return self.log_beyond(bound)

    def log_beyond(self, bound: float) -> float:
        return self._log_bet(STAKES / (1 + bound), bound)

    def log_below(self, bound: float) -> float:
        return self._log_bet(-STAKES / (1 - bound), bound)

    def extended(self, factor: float) -> OutcomeComparison:
        return OutcomeComparison(self.worse * factor, self.better * factor, self.same * factor)

    def _log_bet(self, stakes: Floats, bound: float) -> float:
        logs = (
            self.worse * np.log1p(stakes * (1 - bound))
            + self.better * np.log1p(stakes * (-1 - bound))
            + self.same * np.log1p(-stakes * bound)
        )
        return float(log_mean(logs, UNIFORM))


@dataclass(frozen=True)
class ScoreComparison:
    """Sums of bounded scores by cell, shape [cells]; `scales` turns an effect into their mean."""

    counts: Floats
    totals: Floats
    squares: Floats
    scales: Floats
    is_per_step: bool = False

    @classmethod
    def of(cls, pairs: PairedScores) -> ScoreComparison:
        """Return the comparison of stored sums of paired differences."""
        count, total, squares = np.array([pairs.pairs, pairs.total, pairs.squares], np.float64)
        return cls(np.array([count]), np.array([total]), np.array([squares]), np.ones(1))

    @property
    def size(self) -> float:
        return float(self.counts.sum())

    def effect(self) -> float:
        weight = float((self.counts * self.scales).sum())
        return float(self.totals.sum()) / weight if weight else 0.0

    def log_above(self, bound: float) -> float:
        cells = self._log_cells(bound, 1.0)
        weights = start_weights(len(self.counts))
        if self.is_per_step:
            return float((log_mean(cells, UNIFORM) + np.log(weights)).max())
        return float(log_started(log_mean(suffix_sums(cells), UNIFORM), weights))

    def log_beyond(self, bound: float) -> float:
        return self._log_whole(bound, 1.0)

    def log_below(self, bound: float) -> float:
        return self._log_whole(bound, -1.0)

    def extended(self, factor: float) -> ScoreComparison:
        return replace(
            self,
            counts=self.counts * factor,
            totals=self.totals * factor,
            squares=self.squares * factor,
        )

    def _log_whole(self, bound: float, sign: float) -> float:
        cells = self._log_cells(bound, sign)
        if self.is_per_step:
            weights = start_weights(len(self.counts))
            return float((log_mean(cells, UNIFORM) + np.log(weights)).max())
        return float(log_mean(cells.sum(axis=0), UNIFORM))

    def _log_cells(self, bound: float, sign: float) -> Floats:
        """Return k (sum x - n m) - psi(k) sum x^2 by cell and stake k, for sign x."""
        excess = sign * (self.totals - self.counts * self.scales * bound)
        return excess[:, None] * STAKES - self.squares[:, None] * PENALTIES


def interval(comparison: Comparison, alpha: float) -> tuple[float, float]:
    """Return the confidence sequence of the effect, each end at level alpha at all times."""
    needed = -math.log(alpha)
    low = _crossing(lambda bound: comparison.log_beyond(bound) < needed)
    high = -_crossing(lambda bound: comparison.log_below(-bound) < needed)
    return low, high


def _crossing(is_possible: Callable[[float], bool]) -> float:
    """Return the least bound in [-1, 1] that is still possible; they are from some bound on."""
    low, high = -1.0, 1.0
    limit = 1 - INTERVAL_PRECISION
    if is_possible(-limit):
        return -1.0
    if not is_possible(limit):
        return 1.0
    while high - low > INTERVAL_PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if is_possible(middle) else (middle, high)
    return low


def compare_arms(
    guard: Guard, cells: list[Cell], center: float, *, is_sticky: bool
) -> ScoreComparison | None:
    """Return the comparison of the scores of a split; None before there are any.

    Mirrored cells say nothing: a copy's answer reaches nobody, and its label is of the call.
    """
    used = [
        cell
        for cell in cells
        if 0 < cell.share < 1
        and not cell.shadow
        and any(guard.metric in side.scores for side in (cell.candidate, cell.baseline))
    ]
    if not used:
        return None
    sums = [_arm_sums(guard, cell, center) for cell in used]
    return ScoreComparison(*np.array(sums, dtype=np.float64).T, is_per_step=is_sticky)


def _arm_sums(guard: Guard, cell: Cell, center: float) -> tuple[float, float, float, float]:
    """Return count, sum and sum of squares of (A - q)(y - c) over losses y, and q (1 - q)."""
    share, sign = cell.share, -1.0 if guard.higher_is_better else 1.0
    count = total = squares = 0.0
    for side, weight in ((cell.candidate, 1 - share), (cell.baseline, -share)):
        scores = side.scores.get(guard.metric, Scores())
        count += scores.count
        total += sign * weight * (scores.total - scores.count * center)
        centered = scores.squares - 2 * center * scores.total + scores.count * center**2
        squares += weight**2 * max(centered, 0.0)
    return count, total, squares, share * (1 - share)
