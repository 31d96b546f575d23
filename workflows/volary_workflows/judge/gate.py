"""The evaluation gate: candidate against production on the same rows, before any traffic.

Each row gives one bounded loss of each version, so the test is paired: d_i = loss(candidate) -
loss(production), and the candidate is not inferior when E[d] is below the declared margin, shown
at level alpha. It needs only n, the mean and the sample variance of d, and the range that the
loss allows. The rows are fixed before, so this is a test of one look, unlike the judge's.

`normal` uses the central limit theorem, E[d] <= mean + z(1 - alpha) sqrt(V/n), V the sample
variance, and wants 1,000 rows. `empirical_bernstein` (Maurer and Pontil, "Empirical Bernstein
bounds and sample variance penalization", COLT 2009, theorem 4) assumes bounded independent rows
alone: with probability >= 1 - alpha, R the range,

    E[d] <= mean + sqrt(2 V log(2/alpha) / n) + 7 R log(2/alpha) / (3 (n - 1)).

Its last term asks for many rows where the loss is nearly unbounded: for a log loss clipped at
10^-6 (R = 27.6) and alpha = 1 %, 34,000 rows for 0.01 nats.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from volary_workflows.judge.inputs import FAIL, INCONCLUSIVE, PASS, GateRule

GATE_VERSION = "paired-bound/1"
EMPIRICAL_BERNSTEIN, NORMAL = "empirical_bernstein", "normal"
METHODS = (EMPIRICAL_BERNSTEIN, NORMAL)
LEAST_ROWS_OF_NORMAL = 1_000
NOT_INFERIOR, INFERIOR = "NOT_INFERIOR", "INFERIOR"
TOO_FEW_ROWS, NOT_SETTLED = "TOO_FEW_ROWS", "NOT_SETTLED"


@dataclass(frozen=True)
class PairedLosses:
    """Sufficient statistics of candidate less production over the same rows.

    `variance` divides by n - 1; `lower` and `upper` are the least and largest difference that
    the loss allows.
    """

    metric: str
    rows: int
    mean: float
    variance: float
    lower: float
    upper: float


@dataclass(frozen=True)
class GateVerdict:
    """The gate's decision: [low, high] holds E[d] with one-sided level alpha at each end."""

    verdict: str
    reason_code: str
    reason: str
    low: float
    high: float
    rule: GateRule
    losses: PairedLosses
    gate_version: str = GATE_VERSION

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def judge_gate(rule: GateRule, losses: PairedLosses) -> GateVerdict:
    """Return PASS when the candidate is shown to be not inferior by the margin, FAIL when inferior.

    INCONCLUSIVE when the rows settle neither. ValueError when the statistics are of another metric
    or are not finite.
    """
    _check(rule, losses)
    least = max(rule.min_rows, LEAST_ROWS_OF_NORMAL if rule.method == NORMAL else 2)
    if losses.rows < least:
        reason = f"{losses.rows:,} rows are fewer than {least:,}"
        return GateVerdict(
            INCONCLUSIVE, TOO_FEW_ROWS, reason, losses.lower, losses.upper, rule, losses
        )
    reach = half_width(rule, losses)
    low, high = losses.mean - reach, losses.mean + reach
    verdict, code = _decide(rule.margin, low, high)
    reason = (
        f"{rule.metric} of the candidate less production's is {losses.mean:+.5f} over "
        f"{losses.rows:,} rows, in [{low:+.5f}, {high:+.5f}] at alpha {rule.alpha:g} a side; the "
        f"margin is {rule.margin:+.5f}"
    )
    return GateVerdict(verdict, code, reason, low, high, rule, losses)


def half_width(rule: GateRule, losses: PairedLosses) -> float:
    """Return how far the mean may be from E[d], one-sided at level alpha, in units of the loss."""
    if rule.method == NORMAL:
        return NormalDist().inv_cdf(1 - rule.alpha) * math.sqrt(losses.variance / losses.rows)
    log_term = math.log(2 / rule.alpha)
    spread = math.sqrt(2 * losses.variance * log_term / losses.rows)
    return spread + 7 * (losses.upper - losses.lower) * log_term / (3 * (losses.rows - 1))


def recompute_gate(document: dict[str, Any]) -> GateVerdict:
    """Return the verdict on stored inputs, for whoever wants to check one."""
    return judge_gate(GateRule(**document["rule"]), PairedLosses(**document["losses"]))


def _decide(margin: float, low: float, high: float) -> tuple[str, str]:
    if high < margin:
        return PASS, NOT_INFERIOR
    if low > margin:
        return FAIL, INFERIOR
    return INCONCLUSIVE, NOT_SETTLED


def _check(rule: GateRule, losses: PairedLosses) -> None:
    if rule.metric != losses.metric:
        raise ValueError(f"the rule asks for {rule.metric}, the statistics are of {losses.metric}")
    if rule.method not in METHODS:
        raise ValueError(f"unknown method {rule.method!r}")
    numbers = (losses.mean, losses.variance, losses.lower, losses.upper)
    if not all(math.isfinite(number) for number in numbers) or losses.variance < 0:
        raise ValueError("the statistics are not finite")
