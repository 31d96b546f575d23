"""The evaluation gate: candidate against production on the same rows, before any traffic.

Each row gives one bounded loss of each, so the test is paired: d_i = loss(candidate) -
loss(production). The candidate is not inferior when its mean loss exceeds production's by less
than the declared margin m, shown at level alpha.

H0 "E[d_i | rows before] >= m" is tested by a capital process (Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS-B 86, 2024, section 4):

    K_n = prod (1 + lambda_i (m - d_i)),   0 <= lambda_i <= 1 / (2 (B - m)),  |d_i| <= B,

lambda_i chosen from the rows before i (their predictable plug-in for a fixed n, clipped). K is
nonnegative with expectation <= 1 under H0, so P(K_n >= 1/alpha) <= alpha without any assumption
about the shape of d; no bootstrap, no normal approximation, and deterministic given the order of
the rows, which is by event time. Where rows are independent it needs about as many as the
z-test. The mirror process tests H0 "E[d] <= m" and so shows that a candidate is inferior.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from volary_workflows.judge.series import Floats
from volary_workflows.judge.verdict import FAIL, INCONCLUSIVE, PASS

GATE_VERSION = "paired-betting/1"
LOG_LOSS, BRIER, ERROR = "log_loss", "brier", "error"
LEAST_PROBABILITY = 0.001  # bounds the log loss by 6.91 nats
MOST_OF_CAPITAL = 0.5  # never stake more than half against the worst row
PRIOR_ROWS = 10  # weight of the first guess of the variance


@dataclass(frozen=True)
class GateRule:
    """What promotion to a rollout must show.

    `margin` is in units of the metric: nats for `log_loss`, probability squared for `brier`,
    share of rows for `error` (the complement of accuracy at threshold 0.5).
    """

    metric: str = LOG_LOSS
    margin: float = 0.01
    alpha: float = 0.01
    min_rows: int = 1_000


@dataclass(frozen=True)
class GateVerdict:
    """The gate's decision with the figures behind it; losses are means over the rows.

    `difference` is candidate minus production, `standard_error` its usual estimate, for people;
    the decision rests on `log_good` and `log_worse` against log(1/alpha) alone.
    """

    verdict: str
    reason: str
    rule: GateRule
    rows: int
    candidate_loss: float
    production_loss: float
    difference: float
    standard_error: float
    log_good: float
    log_worse: float
    gate_version: str = GATE_VERSION

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def judge_gate(
    rule: GateRule, candidate: Floats, production: Floats, outcomes: Floats
) -> GateVerdict:
    """Return whether the candidate's probabilities are not inferior to production's.

    `candidate` and `production` are probabilities of the same rows in order of event time,
    `outcomes` 0 or 1; each has shape [rows]. ValueError when shapes differ or values are not
    finite.
    """
    _check(candidate, production, outcomes)
    ours, theirs = (losses(rule.metric, each, outcomes) for each in (candidate, production))
    return judge_losses(rule, ours, theirs)


def judge_losses(rule: GateRule, candidate: Floats, production: Floats) -> GateVerdict:
    """Return whether the candidate's losses, bounded as `losses` bounds them, are not inferior."""
    differences = candidate - production
    rows = len(differences)
    bound = loss_bound(rule.metric)
    good = log_capital(rule.margin - differences, bound + rule.margin, rule.alpha)
    worse = log_capital(differences - rule.margin, bound + rule.margin, rule.alpha)
    verdict, reason = _decide(rule, rows, good, worse)
    return GateVerdict(
        verdict=verdict,
        reason=reason,
        rule=rule,
        rows=rows,
        candidate_loss=float(candidate.mean()) if rows else math.nan,
        production_loss=float(production.mean()) if rows else math.nan,
        difference=float(differences.mean()) if rows else math.nan,
        standard_error=float(differences.std(ddof=1) / math.sqrt(rows)) if rows > 1 else math.nan,
        log_good=good,
        log_worse=worse,
    )


def losses(metric: str, probabilities: Floats, outcomes: Floats) -> Floats:
    """Return the loss of each row; ValueError for an unknown metric."""
    if metric == LOG_LOSS:
        clipped = np.clip(probabilities, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        return -np.log(np.where(outcomes > 0, clipped, 1 - clipped))
    if metric == BRIER:
        return (probabilities - outcomes) ** 2
    if metric == ERROR:
        return ((probabilities >= 0.5) != (outcomes > 0)).astype(np.float64)
    raise ValueError(f"unknown metric {metric!r}")


def loss_bound(metric: str) -> float:
    """Return the largest difference of two losses of one row."""
    if metric == LOG_LOSS:
        return math.log((1 - LEAST_PROBABILITY) / LEAST_PROBABILITY)
    return 1.0


def log_capital(gains: Floats, bound: float, alpha: float) -> float:
    """Return the log of the final capital of betting that `gains` are positive on average.

    `gains` >= -bound. Stakes come from the gains before each row:
    lambda_i = sqrt(2 log(1/alpha) / (n v_{i-1})), v the running mean square with a first guess of
    (bound/10)^2 weighing `PRIOR_ROWS` rows.
    """
    rows = len(gains)
    if rows == 0:
        return 0.0
    seen = np.arange(rows)
    squares = np.concatenate([[0.0], np.cumsum(gains**2)[:-1]])
    variance = (squares + PRIOR_ROWS * (bound / 10) ** 2) / (seen + PRIOR_ROWS)
    stakes = np.sqrt(2 * math.log(1 / alpha) / (rows * variance))
    stakes = np.minimum(stakes, MOST_OF_CAPITAL / bound)
    return float(np.log1p(stakes * gains).sum())


def _decide(rule: GateRule, rows: int, good: float, worse: float) -> tuple[str, str]:
    needed = math.log(1 / rule.alpha)
    if rows < rule.min_rows:
        return INCONCLUSIVE, f"{rows} rows are fewer than the declared {rule.min_rows}"
    if good >= needed:
        return PASS, f"not inferior to production by {rule.margin:g} {rule.metric}"
    if worse >= needed:
        return FAIL, f"worse than production by more than {rule.margin:g} {rule.metric}"
    return INCONCLUSIVE, f"{rows} rows do not settle a margin of {rule.margin:g} {rule.metric}"


def _check(candidate: Floats, production: Floats, outcomes: Floats) -> None:
    if not candidate.shape == production.shape == outcomes.shape or candidate.ndim != 1:
        raise ValueError("candidate, production and outcomes must be one column of equal length")
    for name, values in (("candidate", candidate), ("production", production)):
        if not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} holds values that are no probabilities")
    if not np.isin(outcomes, (0.0, 1.0)).all():
        raise ValueError("outcomes must be 0 or 1")
