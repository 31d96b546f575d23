"""The judge: from inputs to PASS, FAIL or INCONCLUSIVE, with reasons and what is missing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from volary_workflows.judge.evidence import (
    log_below_limit,
    log_mean,
    log_misassigned,
    log_not_inferior,
    log_worse,
)
from volary_workflows.judge.inputs import (
    FAIL,
    INCOMPLETE_EVIDENCE,
    INCONCLUSIVE,
    PASS,
    TINY_REGRESSION,
    Guard,
    Inputs,
)
from volary_workflows.judge.series import Series, assignment_series, series_of

VERSION = "rate-ratio/1"
CANDIDATE_WORSE = "CANDIDATE_WORSE"
SHARE_MISMATCH = "SHARE_MISMATCH"
NEEDS_MORE_CALLS = "NEEDS_MORE_CALLS"
CANNOT_PASS = "CANNOT_PASS"  # noqa: S105
GOOD_ENOUGH = "GOOD_ENOUGH"
NO_CALLS = "NO_CALLS"
ALPHA_OF_ASSIGNMENT = 1e-4
MOST_CALLS = 1e9
WORDS = {
    CANDIDATE_WORSE: "the candidate is worse than the baseline, by more than the declared floor",
    TINY_REGRESSION: "the candidate is certainly worse, by less than the declared floor",
    INCOMPLETE_EVIDENCE: "records of this step may be missing, so nothing can pass on it",
    SHARE_MISMATCH: "the calls did not arrive in the declared shares",
    NEEDS_MORE_CALLS: "too few calls to rule out a regression",
    CANNOT_PASS: "no number of calls at these rates would show that the candidate is good enough",
    GOOD_ENOUGH: "every guard shows that the candidate is good enough",
    NO_CALLS: "the candidate has answered no call yet",
}


@dataclass(frozen=True)
class GuardFinding:
    """What one guard says; evidence as natural logarithms of e-values.

    `more_calls` are further calls of the candidate until PASS if the next look like those so
    far; 0 when it has passed, -1 when no number would do. Rates are those of its worst series.
    """

    metric: str
    kind: str
    alpha: float
    log_worse: float
    log_good: float
    effect: float
    candidate_rate: float
    baseline_rate: float
    candidate_calls: int
    baseline_calls: int
    is_good: bool
    more_calls: int


@dataclass(frozen=True)
class Verdict:
    """The decision; `evidence` is the combined e-value's share of what a rollback needs (>= 1)."""

    verdict: str
    reason_codes: list[str]
    reasons: list[str]
    more_calls: int
    evidence: float
    findings: list[GuardFinding]
    judge_version: str = VERSION

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def judge(inputs: Inputs) -> Verdict:
    """Return the verdict on a candidate.

    FAIL when sum alpha_g E_g >= 1 over guards g, E_g the evidence that the candidate is worse: a
    weighted mean of e-values rejected at 1 / sum alpha_g, valid under any dependence (Vovk and
    Wang, "E-values: calibration, combination and applications", Annals of Statistics 49, 2021),
    so an equal candidate is rolled back with probability <= sum alpha_g however often this is
    called. PASS when every promoting guard has evidence 1/alpha_g that the candidate is not
    inferior (an intersection-union test needs no correction). Else INCONCLUSIVE.
    """
    if not inputs.cells or not any(cell.candidate.calls for cell in inputs.cells):
        return _nothing_yet()
    findings = [_find(guard, inputs) for guard in inputs.guards]
    worse = _combined([(guard.alpha, f.log_worse) for guard, f in _pairs(inputs, findings)])
    blocks = _blocks(inputs)
    is_worse = worse >= 0
    breaches = [
        f for guard, f in _pairs(inputs, findings) if is_worse and f.effect >= guard.min_effect
    ]
    breaches = [f for f in breaches if f.log_worse > 0]
    if breaches:
        codes, verdict = [CANDIDATE_WORSE, *blocks], FAIL
    elif is_worse and TINY_REGRESSION not in inputs.acknowledged:
        codes, verdict = [TINY_REGRESSION, *blocks], INCONCLUSIVE
    else:
        verdict, codes = _promotion(inputs, findings, blocks)
    return Verdict(
        verdict=verdict,
        reason_codes=codes,
        reasons=[WORDS[code] for code in codes] + [_sentence(f) for f in findings],
        more_calls=_more_calls(inputs, findings) if verdict == INCONCLUSIVE else 0,
        evidence=math.exp(min(worse, 700.0)),
        findings=findings,
    )


def recompute(document: dict[str, Any]) -> Verdict:
    """Return the verdict on stored inputs, for whoever wants to check one."""
    return judge(Inputs.from_document(document))


def _promotion(
    inputs: Inputs, findings: list[GuardFinding], blocks: list[str]
) -> tuple[str, list[str]]:
    needed = [f for guard, f in _pairs(inputs, findings) if guard.promotes]
    if all(f.is_good for f in needed) and not blocks:
        return PASS, [GOOD_ENOUGH]
    if all(f.is_good for f in needed):
        return INCONCLUSIVE, blocks
    hopeless = INCOMPLETE_EVIDENCE not in blocks and any(
        f.more_calls < 0 and f.candidate_calls > 0 for f in needed
    )
    return INCONCLUSIVE, [CANNOT_PASS if hopeless else NEEDS_MORE_CALLS, *blocks]


def _blocks(inputs: Inputs) -> list[str]:
    """Return what stands against PASS whatever the counts say."""
    codes = [] if inputs.cells[-1].complete else [INCOMPLETE_EVIDENCE]
    assignment = assignment_series(inputs)
    if assignment.shares.size:
        mismatch = float(log_misassigned(assignment)) >= -math.log(ALPHA_OF_ASSIGNMENT)
        codes += [SHARE_MISMATCH] if mismatch else []
    return [code for code in codes if code not in inputs.acknowledged]


def _find(guard: Guard, inputs: Inputs) -> GuardFinding:
    series = series_of(guard, inputs)
    sound = [cell for cell in inputs.cells if cell.complete]
    sure = series_of(guard, replace(inputs, cells=sound)) if sound else []
    worse = [float(log_worse(each, guard.tolerated_ratio)) for each in series]
    good = _log_good(guard, sure)
    is_good = good >= -math.log(guard.alpha)
    worst = series[int(np.argmax(worse))] if series else None
    return GuardFinding(
        metric=guard.metric,
        kind=guard.kind,
        alpha=guard.alpha,
        log_worse=float(_mean(worse)),
        log_good=good,
        effect=worst.effect() if worst else 0.0,
        candidate_rate=worst.candidate_rate() if worst else 0.0,
        baseline_rate=worst.baseline_rate() if worst else 0.0,
        candidate_calls=int(worst.candidate_calls.sum()) if worst else 0,
        baseline_calls=int(worst.baseline_calls[worst.splits].sum()) if worst else 0,
        is_good=is_good,
        more_calls=0 if is_good else _calls_until_good(guard, sure),
    )


def _log_good(guard: Guard, series: list[Series]) -> float:
    """Return the log evidence that the candidate is acceptable by this guard.

    Its null is "inferior by more than the margin at some threshold, and above the limit": the
    least of the thresholds' non-inferiority, averaged with the evidence of being below the limit.
    """
    relative = [float(log_not_inferior(s, guard.margin)) for s in series if s.has_margin]
    absolute = [float(log_below_limit(s)) for s in series if s.limit > 0]
    return float(_mean(([min(relative)] if relative else []) + absolute))


def _calls_until_good(guard: Guard, series: list[Series]) -> int:
    """Return how many more candidate calls reach 1/alpha at the rates so far, -1 for never."""
    share = float(series[0].shares[-1]) if series else 0.0
    if share <= 0:
        return -1
    needed = -math.log(guard.alpha)

    def is_enough(calls: float) -> bool:
        return _log_good(guard, [s.extended(calls / share) for s in series]) >= needed

    if not is_enough(MOST_CALLS):
        return -1
    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, high * 2
    while high - low > max(1.0, low * 0.001):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return math.ceil(high)


def _more_calls(inputs: Inputs, findings: list[GuardFinding]) -> int:
    needs = [f.more_calls for guard, f in _pairs(inputs, findings) if guard.promotes]
    return -1 if any(need < 0 for need in needs) else max(needs, default=0)


def _nothing_yet() -> Verdict:
    return Verdict(INCONCLUSIVE, [NO_CALLS], [WORDS[NO_CALLS]], -1, 0.0, [])


def _mean(logs: list[float]) -> np.float64:
    if not logs:
        return np.float64(0.0)
    return np.float64(log_mean(np.array(logs), np.full(len(logs), 1 / len(logs))))


def _combined(weighted: list[tuple[float, float]]) -> float:
    """Return log sum alpha_g E_g."""
    if not weighted:
        return -math.inf
    alphas, logs = zip(*weighted, strict=True)
    return float(log_mean(np.array(logs), np.array(alphas)))


def _pairs(inputs: Inputs, findings: list[GuardFinding]) -> list[tuple[Guard, GuardFinding]]:
    return list(zip(inputs.guards, findings, strict=True))


def _sentence(finding: GuardFinding) -> str:
    worse, good = finding.log_worse / math.log(10), finding.log_good / math.log(10)
    needed = -math.log10(finding.alpha)
    more = {0: "", -1: "; more calls alone would not make it pass"}.get(
        finding.more_calls, f"; about {finding.more_calls:,} more candidate calls"
    )
    return (
        f"{finding.metric}: {finding.candidate_rate:.3%} of {finding.candidate_calls:,} candidate "
        f"calls against {finding.baseline_rate:.3%} of {finding.baseline_calls:,}; evidence worse "
        f"10^{worse:.1f}, good enough 10^{good:.1f}, needed 10^{needed:.1f}{more}"
    )
