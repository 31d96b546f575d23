"""What each guard finds, whatever its kind: evidence, effect, and how much is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from volary_workflows.judge.bins import compare_cells, compare_pairs
from volary_workflows.judge.evidence import (
    log_below_limit,
    log_mean,
    log_misassigned,
    log_not_inferior,
    log_worse,
)
from volary_workflows.judge.inputs import (
    LABELS_DEPEND_ON_VERSION,
    PREDICTION_DISTRIBUTION,
    PREDICTIONS_SHIFTED,
    SCORED_KINDS,
    Guard,
    Inputs,
)
from volary_workflows.judge.means import (
    Comparison,
    OutcomeComparison,
    ScoreComparison,
    compare_arms,
    interval,
)
from volary_workflows.judge.series import Series, label_series, series_of

ALPHA_OF_ASSIGNMENT = 1e-4
MOST_CALLS = 1e9
NEUTRAL_CENTER = 0.5


@dataclass(frozen=True)
class GuardFinding:
    """What one guard says; evidence as natural logarithms of e-values.

    `more_calls` are further calls of the candidate until PASS if the next look like those so
    far; 0 when it has passed, -1 when no number would do. Rates are those of its worst series;
    for scores they are the mean scores, and `low` to `high` is the confidence sequence of the
    effect. `codes` ask a person to look before the guard counts.
    """

    metric: str
    kind: str
    alpha: float
    log_worse: float = 0.0
    log_good: float = 0.0
    effect: float = 0.0
    candidate_rate: float = 0.0
    baseline_rate: float = 0.0
    candidate_calls: int = 0
    baseline_calls: int = 0
    is_good: bool = False
    more_calls: int = -1
    low: float = -1.0
    high: float = 1.0
    codes: list[str] = field(default_factory=list)


def find(guard: Guard, inputs: Inputs) -> GuardFinding:
    """Return what a guard finds in the inputs."""
    if guard.kind == PREDICTION_DISTRIBUTION:
        return _of_bins(guard, inputs)
    if guard.kind in SCORED_KINDS:
        return _of_scores(guard, inputs)
    return _of_counts(guard, inputs)


def mean_of(logs: list[float]) -> float:
    """Return the log of the mean of e-values; without any, that of 1."""
    if not logs:
        return 0.0
    return float(log_mean(np.array(logs), np.full(len(logs), 1 / len(logs))))


# --- error rates and latencies -------------------------------------------------------------


def _of_counts(guard: Guard, inputs: Inputs) -> GuardFinding:
    series = series_of(guard, inputs)
    sound = [cell for cell in inputs.cells if cell.complete]
    sure = series_of(guard, replace(inputs, cells=sound)) if sound else []
    worse = [float(log_worse(each, guard.tolerated_ratio)) for each in series]
    good = log_good(guard, sure)
    is_good = good >= -math.log(guard.alpha)
    finding = GuardFinding(
        metric=guard.metric,
        kind=guard.kind,
        alpha=guard.alpha,
        log_worse=mean_of(worse),
        log_good=good,
        is_good=is_good,
        more_calls=0 if is_good else _calls_until_good(guard, sure),
    )
    if not series:
        return finding
    worst = series[int(np.argmax(worse))]
    return replace(
        finding,
        effect=worst.effect(),
        candidate_rate=worst.candidate_rate(),
        baseline_rate=worst.baseline_rate(),
        candidate_calls=int(worst.candidate_calls.sum()),
        baseline_calls=int(worst.baseline_calls[worst.splits].sum()),
    )


def log_good(guard: Guard, series: list[Series]) -> float:
    """Return the log evidence that the candidate is acceptable by this guard.

    Its null is "inferior by more than the margin at some threshold, and above the limit": the
    least of the thresholds' non-inferiority, averaged with the evidence of being below the limit.
    """
    relative = [float(log_not_inferior(s, guard.margin)) for s in series if s.has_margin]
    absolute = [float(log_below_limit(s)) for s in series if s.limit > 0]
    return mean_of(([min(relative)] if relative else []) + absolute)


def _calls_until_good(guard: Guard, series: list[Series]) -> int:
    """Return how many more candidate calls reach 1/alpha at the rates so far, -1 for never."""
    share = float(series[0].shares[-1]) if series else 0.0
    if share <= 0:
        return -1
    needed = -math.log(guard.alpha)
    return least_number(
        lambda calls: log_good(guard, [s.extended(calls / share) for s in series]) >= needed
    )


def least_number(is_enough: Callable[[float], bool]) -> int:
    """Return the least number that is enough, within 0.1 %; -1 when 10^9 are not."""
    if not is_enough(MOST_CALLS):
        return -1
    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, high * 2
    while high - low > max(1.0, low * 0.001):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return math.ceil(high)


# --- scores: quality, business ---------------------------------------------------------------


def _of_scores(guard: Guard, inputs: Inputs) -> GuardFinding:
    comparison = _compared(guard, inputs)
    finding = GuardFinding(guard.metric, guard.kind, guard.alpha)
    if comparison is None or comparison.size == 0:
        return finding
    good = comparison.log_below(guard.margin)
    is_good = good >= -math.log(guard.alpha)
    low, high = interval(comparison, guard.alpha)
    ours, theirs = _mean_scores(guard, inputs)
    return replace(
        finding,
        log_worse=comparison.log_above(0.0),
        log_good=good,
        effect=comparison.effect(),
        candidate_rate=ours[0],
        candidate_calls=ours[1],
        baseline_rate=theirs[0],
        baseline_calls=theirs[1],
        is_good=is_good,
        more_calls=0 if is_good else _scores_until_good(guard, inputs, comparison),
        low=low,
        high=high,
        codes=_delay_codes(guard, inputs),
    )


def _compared(guard: Guard, inputs: Inputs) -> Comparison | None:
    """Return the paired comparison of the metric where there is one, else that of the split."""
    for outcomes in inputs.outcomes:
        if outcomes.metric == guard.metric:
            return OutcomeComparison.of(outcomes)
    for scores in inputs.differences:
        if scores.metric == guard.metric:
            return ScoreComparison.of(scores)
    center = inputs.centers.get(guard.metric, NEUTRAL_CENTER)
    return compare_arms(guard, inputs.cells, center, is_sticky=inputs.sticky)


def _is_paired(guard: Guard, inputs: Inputs) -> bool:
    return any(each.metric == guard.metric for each in [*inputs.outcomes, *inputs.differences])


def _mean_scores(guard: Guard, inputs: Inputs) -> tuple[tuple[float, int], tuple[float, int]]:
    """Return mean and number of the scores of each side; of pairs only the number is known."""
    pairs = sum(
        e.pairs for e in [*inputs.outcomes, *inputs.differences] if e.metric == guard.metric
    )
    if _is_paired(guard, inputs):
        return (0.0, int(pairs)), (0.0, int(pairs))
    sides = []
    for side in ("candidate", "baseline"):
        scores = [
            getattr(cell, side).scores[guard.metric]
            for cell in inputs.cells
            if not cell.shadow and guard.metric in getattr(cell, side).scores
        ]
        count = sum(each.count for each in scores)
        sides.append((sum(each.total for each in scores) / max(count, 1), int(count)))
    return sides[0], sides[1]


def _delay_codes(guard: Guard, inputs: Inputs) -> list[str]:
    """Return whether labels of one version come later, or not at all: then means mislead."""
    if _is_paired(guard, inputs):
        return []
    series = label_series(guard.metric, inputs.cells, is_sticky=inputs.sticky)
    is_late = float(log_misassigned(series)) >= -math.log(ALPHA_OF_ASSIGNMENT)
    return [LABELS_DEPEND_ON_VERSION] if is_late else []


def _scores_until_good(guard: Guard, inputs: Inputs, comparison: Comparison) -> int:
    """Return how many more candidate calls bring enough scores, at as many a call as so far."""
    needed = -math.log(guard.alpha)
    more = least_number(
        lambda scores: (
            comparison.extended(1 + scores / comparison.size).log_below(guard.margin) >= needed
        )
    )
    calls = sum(cell.candidate.calls for cell in inputs.cells)
    return more if more < 0 else math.ceil(more * max(calls, 1) / comparison.size)


# --- predictions -----------------------------------------------------------------------------


def _of_bins(guard: Guard, inputs: Inputs) -> GuardFinding:
    """Return a finding that never counts for or against the candidate, but may ask for a look."""
    paired = [compare_pairs(each) for each in inputs.paired_bins if each.metric == guard.metric]
    served = compare_cells(guard.metric, inputs.cells, is_sticky=inputs.sticky)
    compared = [*paired, *([served] if served else [])]
    finding = GuardFinding(guard.metric, guard.kind, guard.alpha, is_good=True, more_calls=0)
    if not compared:
        return finding
    logs = [each.log_differs() for each in compared]
    strongest = compared[int(np.argmax(logs))]
    worse, effect = mean_of(logs), strongest.effect()
    is_shifted = worse >= -math.log(guard.alpha) and effect >= guard.min_effect
    return replace(
        finding,
        log_worse=worse,
        effect=effect,
        candidate_calls=strongest.sizes[0],
        baseline_calls=strongest.sizes[1],
        codes=[PREDICTIONS_SHIFTED] if is_shifted else [],
    )
