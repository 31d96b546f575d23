"""The judge: from inputs to PASS, FAIL or INCONCLUSIVE, with reasons and what is missing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from volary_workflows.judge.evidence import log_mean, log_misassigned
from volary_workflows.judge.findings import ALPHA_OF_ASSIGNMENT, GuardFinding, find
from volary_workflows.judge.inputs import (
    COUNTED_KINDS,
    FAIL,
    INCOMPLETE_EVIDENCE,
    INCONCLUSIVE,
    LABELS_DEPEND_ON_VERSION,
    PASS,
    PREDICTION_DISTRIBUTION,
    PREDICTIONS_SHIFTED,
    TINY_REGRESSION,
    Guard,
    Inputs,
)
from volary_workflows.judge.series import assignment_series

VERSION = "rate-ratio/2"
CANDIDATE_WORSE = "CANDIDATE_WORSE"
SHARE_MISMATCH = "SHARE_MISMATCH"
NEEDS_MORE_CALLS = "NEEDS_MORE_CALLS"
CANNOT_PASS = "CANNOT_PASS"  # noqa: S105
GOOD_ENOUGH = "GOOD_ENOUGH"
NO_CALLS = "NO_CALLS"
WORDS = {
    CANDIDATE_WORSE: "the candidate is worse than the baseline, by more than the declared floor",
    TINY_REGRESSION: "the candidate is certainly worse, by less than the declared floor",
    INCOMPLETE_EVIDENCE: "records of this step may be missing, so nothing can pass on it",
    PREDICTIONS_SHIFTED: "the candidate predicts otherwise than the baseline: should it?",
    LABELS_DEPEND_ON_VERSION: "labels of one version come later or not at all, so means mislead",
    SHARE_MISMATCH: "the calls did not arrive in the declared shares",
    NEEDS_MORE_CALLS: "too few calls to rule out a regression",
    CANNOT_PASS: "no number of calls at these rates would show that the candidate is good enough",
    GOOD_ENOUGH: "every guard shows that the candidate is good enough",
    NO_CALLS: "the candidate has answered no call yet",
}


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


class OtherJudge(ValueError):
    """The verdict was given by another version of the judge, which decides by other rules."""


def judge(inputs: Inputs) -> Verdict:
    """Return the verdict on a candidate.

    FAIL when sum alpha_g E_g >= 1 over guards g, E_g the evidence that the candidate is worse: a
    weighted mean of e-values rejected at 1 / sum alpha_g, valid under any dependence (Vovk and
    Wang, "E-values: calibration, combination and applications", Annals of Statistics 49, 2021),
    so an equal candidate is rolled back with probability <= sum alpha_g however often this is
    called (Grunwald, de Heide and Koolen, "Safe testing", JRSS B 86, 2024, on stopping at will).
    PASS when every promoting guard has evidence 1/alpha_g that the candidate is not inferior (an
    intersection-union test needs no correction). Else INCONCLUSIVE. A guard on the distribution of
    predictions, or one whose labels depend on the version, asks a person to look, and no more.
    """
    if not inputs.cells or not any(cell.candidate.calls for cell in inputs.cells):
        return _nothing_yet()
    findings = [find(guard, inputs) for guard in inputs.guards]
    counted = [(g, f) for g, f in _pairs(inputs, findings) if _counts(g, f, inputs)]
    worse = _combined([(guard.alpha, f.log_worse) for guard, f in counted])
    breaches = [f for guard, f in counted if f.log_worse > 0 and f.effect >= guard.min_effect]
    blocks = _blocks(inputs, findings)
    is_worse = worse >= 0
    if is_worse and breaches:
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


def recompute(document: dict[str, Any], judge_version: str = VERSION) -> Verdict:
    """Return the verdict on stored inputs, for whoever wants to check one.

    Raises OtherJudge when it was given by a version of the judge that this code does not hold.
    """
    if judge_version != VERSION:
        raise OtherJudge(f"judged by {judge_version}, this is {VERSION}: use the release of then")
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


def _counts(guard: Guard, finding: GuardFinding, inputs: Inputs) -> bool:
    """Say whether a guard may speak for a rollback: not while a person has to look at it first."""
    waits = any(code not in inputs.acknowledged for code in finding.codes)
    return guard.kind != PREDICTION_DISTRIBUTION and not waits


def _blocks(inputs: Inputs, findings: list[GuardFinding]) -> list[str]:
    """Return what stands against PASS whatever the counts say."""
    codes = [] if inputs.cells[-1].complete else [INCOMPLETE_EVIDENCE]
    assignment = assignment_series(inputs)
    if assignment.shares.size:
        mismatch = float(log_misassigned(assignment)) >= -math.log(ALPHA_OF_ASSIGNMENT)
        codes += [SHARE_MISMATCH] if mismatch else []
    codes += dict.fromkeys(code for finding in findings for code in finding.codes)
    return [code for code in codes if code not in inputs.acknowledged]


def _more_calls(inputs: Inputs, findings: list[GuardFinding]) -> int:
    needs = [f.more_calls for guard, f in _pairs(inputs, findings) if guard.promotes]
    return -1 if any(need < 0 for need in needs) else max(needs, default=0)


def _nothing_yet() -> Verdict:
    return Verdict(INCONCLUSIVE, [NO_CALLS], [WORDS[NO_CALLS]], -1, 0.0, [])


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
    if finding.kind == PREDICTION_DISTRIBUTION:
        return (
            f"{finding.metric}: {finding.effect:.1%} of {finding.candidate_calls:,} candidate "
            f"predictions fall into other bins than the baseline's {finding.baseline_calls:,}; "
            f"evidence of a difference 10^{worse:.1f}, needed 10^{needed:.1f}"
        )
    more = {0: "", -1: "; more calls alone would not make it pass"}.get(
        finding.more_calls, f"; about {finding.more_calls:,} more candidate calls"
    )
    evidence = f"evidence worse 10^{worse:.1f}, good enough 10^{good:.1f}, needed 10^{needed:.1f}"
    if finding.kind in COUNTED_KINDS:
        return (
            f"{finding.metric}: {finding.candidate_rate:.3%} of {finding.candidate_calls:,} "
            f"candidate calls against {finding.baseline_rate:.3%} of {finding.baseline_calls:,}; "
            f"{evidence}{more}"
        )
    return (
        f"{finding.metric}: worse by {finding.effect:+.4f}, in [{finding.low:+.4f}, "
        f"{finding.high:+.4f}], over {finding.candidate_calls:,} scores of the candidate and "
        f"{finding.baseline_calls:,} of the baseline; {evidence}{more}"
    )
