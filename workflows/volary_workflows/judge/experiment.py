"""The judge of experiments: what each arm does to a metric, in an interval that always holds.

The difference of a treatment's mean and the control's is bounded by a confidence sequence: the
empirical-Bernstein one of `judge.means` (Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics
49, 2021; Fan, Grama and Liu, 2015), inverted over both directions. Among the units of the two arms
a unit is the treatment's with the known share q = s_t / (s_t + s_c), so the score
x = (A - q)(y - c) has the mean q (1 - q) difference, and the interval is the set of differences m
that no e-process rejects,

    { m : mean_k exp(+-k sum(x - q (1 - q) m) - psi(k) sum x^2) < 2 T / alpha },

each end of each of T treatments at alpha / 2T: all of them cover at all times with probability
1 - alpha, so the experiment may stop when it likes. A unit (a user, where the assignment is sticky)
counts once, with its first outcome: units are the clusters, calls of one user are never two
observations.

It rests on units arriving in the declared shares, and on outcomes arriving whichever the arm: both
are tested (`judge.assignment`) and a failure voids the verdict. An arm whose calls fail is judged
as a rollout's candidate is, by the error guard.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from volary_workflows.judge.assignment import log_sample_ratio
from volary_workflows.judge.evidence import start_weights
from volary_workflows.judge.inputs import (
    BUSINESS,
    FAIL,
    Cell,
    Counts,
    Guard,
    Inputs,
    Scores,
    counts_from,
)
from volary_workflows.judge.means import ScoreComparison, compare_arms, interval
from volary_workflows.judge.verdict import OtherJudge, judge

KIND = "experiment"
VERSION = "experiment/1"
WINNER, NO_WINNER, UNDECIDED = "WINNER", "NO_WINNER", "UNDECIDED"
INVALID, HARMFUL = "INVALID", "HARMFUL"
BETTER, WORSE, EQUIVALENT = "BETTER", "WORSE", "EQUIVALENT"
SAMPLE_RATIO_MISMATCH = "SAMPLE_RATIO_MISMATCH"
OUTCOMES_DEPEND_ON_ARM = "OUTCOMES_DEPEND_ON_ARM"
ARM_FAILS = "ARM_FAILS"
INCOMPLETE_RECORDS = "INCOMPLETE_RECORDS"
NO_OUTCOMES = "NO_OUTCOMES"
MOST_GROWTH = 2.0**20


@dataclass(frozen=True)
class ArmShare:
    """An arm: its version, and its share of the units."""

    name: str
    version: int
    share: float


@dataclass(frozen=True)
class ArmCell:
    """What the router counted of each arm, by name, under one generation of the traffic."""

    generation: int
    arms: dict[str, Counts]
    complete: bool = True


@dataclass(frozen=True)
class ExperimentInputs:
    """Everything that a verdict depends on.

    `scores` are sums over units with an outcome, scaled to [0, 1] between `lower` and `upper`;
    `center` is the mean expected beforehand on that scale: one that is off costs width, never
    validity. `min_effect` is in units of the metric: less than that does not matter.
    """

    arms: list[ArmShare]
    control: str
    metric: str
    cells: list[ArmCell]
    scores: dict[str, Scores]
    guard: Guard = field(default_factory=Guard)
    lower: float = 0.0
    upper: float = 1.0
    center: float = 0.5
    higher_is_better: bool = True
    alpha: float = 0.05
    alpha_of_ratio: float = 0.001
    min_effect: float = 0.0
    is_sticky: bool = True

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> ExperimentInputs:
        """Read what `to_document` wrote."""
        read: dict[str, Any] = {
            "arms": [ArmShare(**row) for row in document["arms"]],
            "cells": [_cell(row) for row in document["cells"]],
            "scores": {name: Scores(**row) for name, row in document["scores"].items()},
            "guard": Guard(**document["guard"]),
        }
        return cls(**{**document, **read})

    @property
    def treatments(self) -> list[ArmShare]:
        """Return the arms that are held against the control."""
        return [arm for arm in self.arms if arm.name != self.control]

    def arm(self, name: str) -> ArmShare:
        """Return an arm by name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class ArmFinding:
    """One arm in units of the metric; for treatments the difference from the control as well.

    `more_units` with an outcome, in treatment and control together, would decide at the means so
    far; -1 for more than anyone will see.
    """

    name: str
    version: int
    units: int
    outcomes: int
    mean: float
    verdict: str = ""
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    more_units: int = 0


@dataclass(frozen=True)
class ExperimentVerdict:
    """What is known of all arms; `winner` is the best arm that is better than the control."""

    verdict: str
    reason_codes: list[str]
    reasons: list[str]
    findings: list[ArmFinding]
    winner: str = ""
    judge_version: str = VERSION

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def judge_experiment(inputs: ExperimentInputs) -> ExperimentVerdict:
    """Return the verdict so far.

    INVALID when units or outcomes did not arrive in the declared shares, HARMFUL when an arm's
    calls fail, WINNER or NO_WINNER once every treatment is told apart from the control or is
    within the effect that matters, else UNDECIDED.
    """
    findings = [_control(inputs), *(_treatment(inputs, arm) for arm in inputs.treatments)]
    broken = _broken(inputs)
    failing = [arm.name for arm in inputs.treatments if _fails(inputs, arm)]
    notes = [] if all(cell.complete for cell in inputs.cells) else [INCOMPLETE_RECORDS]
    told = [_sentence(inputs, finding) for finding in findings]
    if broken or failing:
        verdict = INVALID if broken else HARMFUL
        codes = list(broken) + ([ARM_FAILS] if failing else [])
        words = [*broken.values(), *(f"{name}: its calls fail more often" for name in failing)]
        return ExperimentVerdict(verdict, codes + notes, words + told, findings)
    verdict, codes, winner = _decision(inputs, findings[1:])
    return ExperimentVerdict(verdict, codes + notes, told, findings, winner)


def recompute(document: dict[str, Any], judge_version: str = VERSION) -> ExperimentVerdict:
    """Return the verdict on stored inputs; raise OtherJudge for another version's."""
    if judge_version != VERSION:
        raise OtherJudge(f"judged by {judge_version}, this is {VERSION}: use the release of then")
    return judge_experiment(ExperimentInputs.from_document(document))


def _decision(inputs: ExperimentInputs, treatments: list[ArmFinding]) -> tuple[str, list[str], str]:
    better = [each for each in treatments if each.verdict == BETTER]
    sign = 1 if inputs.higher_is_better else -1
    winner = max(better, key=lambda each: sign * each.difference).name if better else ""
    if any(each.verdict == UNDECIDED for each in treatments):
        has_none = not any(each.outcomes for each in treatments)
        return UNDECIDED, [NO_OUTCOMES if has_none else UNDECIDED], winner
    return (WINNER if winner else NO_WINNER), [each.verdict for each in treatments], winner


# --- what the verdict rests on ------------------------------------------------------------------


def _broken(inputs: ExperimentInputs) -> dict[str, str]:
    """Return which test of the assignment fails, and how that reads."""
    shares = [arm.share for arm in inputs.arms]
    needed = -math.log(inputs.alpha_of_ratio)
    found: dict[str, str] = {}
    if _log_units(inputs, shares) >= needed:
        units = _listed(inputs, {arm.name: _units(inputs, arm.name) for arm in inputs.arms})
        found[SAMPLE_RATIO_MISMATCH] = f"units did not arrive in the declared shares: {units}"
    outcomes = [_scores(inputs, arm.name).count for arm in inputs.arms]
    if not found and log_sample_ratio(outcomes, shares) >= needed:
        counts = _listed(
            inputs, {arm.name: int(_scores(inputs, arm.name).count) for arm in inputs.arms}
        )
        found[OUTCOMES_DEPEND_ON_ARM] = (
            f"outcomes arrive more often for one arm than for another, so means mislead: {counts}"
        )
    return found


def _log_units(inputs: ExperimentInputs, shares: list[float]) -> float:
    """Return the evidence that units were not drawn in the declared shares.

    Each generation draws calls anew, so evidence multiplies; sticky units come back with the arm
    that was seen, so there a union bound over generations takes the place of the product.
    """
    logs = [
        log_sample_ratio([_size(inputs, cell.arms[arm.name]) for arm in inputs.arms], shares)
        for cell in inputs.cells
    ]
    if not logs:
        return 0.0
    if not inputs.is_sticky:
        return sum(logs)
    weights = start_weights(len(logs))
    return max(log + math.log(weight) for log, weight in zip(logs, weights, strict=True))


def _fails(inputs: ExperimentInputs, arm: ArmShare) -> bool:
    """Say whether the error guard, shared out over the treatments, rolls an arm back."""
    guard = replace(inputs.guard, alpha=inputs.guard.alpha / len(inputs.treatments))
    share = _pair_share(inputs, arm)
    cells = [
        Cell(
            "split",
            cell.generation,
            share,
            cell.arms[arm.name],
            cell.arms[inputs.control],
            complete=cell.complete,
        )
        for cell in inputs.cells
    ]
    return judge(Inputs([guard], cells, sticky=inputs.is_sticky)).verdict == FAIL


# --- the metric ---------------------------------------------------------------------------------


def _control(inputs: ExperimentInputs) -> ArmFinding:
    return _mean_of(inputs, inputs.arm(inputs.control))


def _mean_of(inputs: ExperimentInputs, arm: ArmShare) -> ArmFinding:
    scores = _scores(inputs, arm.name)
    width = inputs.upper - inputs.lower
    mean = inputs.lower + width * scores.total / scores.count if scores.count else 0.0
    return ArmFinding(arm.name, arm.version, _units(inputs, arm.name), int(scores.count), mean)


def _treatment(inputs: ExperimentInputs, arm: ArmShare) -> ArmFinding:
    """Return an arm with its difference from the control, as an interval that always holds."""
    finding = _mean_of(inputs, arm)
    comparison = _compared(inputs, arm)
    if comparison is None:
        width = inputs.upper - inputs.lower
        return replace(finding, verdict=UNDECIDED, low=-width, high=width, more_units=-1)
    low, high = _bounds(inputs, comparison)
    verdict = _told_apart(inputs, low, high)
    return replace(
        finding,
        verdict=verdict,
        difference=comparison.effect() * (inputs.upper - inputs.lower),
        low=low,
        high=high,
        more_units=_more_units(inputs, comparison) if verdict == UNDECIDED else 0,
    )


def _compared(inputs: ExperimentInputs, arm: ArmShare) -> ScoreComparison | None:
    ours, theirs = _scores(inputs, arm.name), _scores(inputs, inputs.control)
    if not ours.count or not theirs.count:
        return None
    metric = Guard(inputs.metric, BUSINESS, higher_is_better=False)  # the difference as it is
    cell = Cell(
        "split",
        0,
        _pair_share(inputs, arm),
        Counts(scores={inputs.metric: ours}),
        Counts(scores={inputs.metric: theirs}),
    )
    return compare_arms(metric, [cell], inputs.center, is_sticky=False)


def _bounds(inputs: ExperimentInputs, comparison: ScoreComparison) -> tuple[float, float]:
    level = inputs.alpha / (2 * len(inputs.treatments))
    low, high = interval(comparison, level)
    width = inputs.upper - inputs.lower
    return low * width, high * width


def _told_apart(inputs: ExperimentInputs, low: float, high: float) -> str:
    least, most = (low, high) if inputs.higher_is_better else (-high, -low)
    if -inputs.min_effect < least and most < inputs.min_effect:
        return EQUIVALENT
    if least > 0:
        return BETTER
    return WORSE if most < 0 else UNDECIDED


def _more_units(inputs: ExperimentInputs, comparison: ScoreComparison) -> int:
    """Return how many more outcomes decide at the means so far, to within a half."""
    factor = 1.0
    while factor < MOST_GROWTH:
        factor *= 1.5
        if _told_apart(inputs, *_bounds(inputs, comparison.extended(factor))) != UNDECIDED:
            return math.ceil(comparison.size * (factor - 1))
    return -1


def _pair_share(inputs: ExperimentInputs, arm: ArmShare) -> float:
    return arm.share / (arm.share + inputs.arm(inputs.control).share)


def _scores(inputs: ExperimentInputs, name: str) -> Scores:
    return inputs.scores.get(name, Scores())


def _units(inputs: ExperimentInputs, name: str) -> int:
    """Return how many units an arm has seen; sticky ones of the generation that saw most."""
    sizes = [_size(inputs, cell.arms[name]) for cell in inputs.cells]
    return int(max(sizes, default=0) if inputs.is_sticky else sum(sizes))


def _size(inputs: ExperimentInputs, counts: Counts) -> int:
    return counts.users if inputs.is_sticky else counts.calls


# --- words --------------------------------------------------------------------------------------


def _listed(inputs: ExperimentInputs, counts: dict[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    return ", ".join(
        f"{arm.name} {counts[arm.name]:,} ({counts[arm.name] / total:.2%} for {arm.share:.2%})"
        for arm in inputs.arms
    )


def _sentence(inputs: ExperimentInputs, finding: ArmFinding) -> str:
    what = f"{finding.name}: {inputs.metric} {finding.mean:.4g} over {finding.outcomes:,} outcomes"
    if finding.name == inputs.control:
        return f"{what}, the control"
    sure = f"{1 - inputs.alpha:g}"
    more = {0: "", -1: "; more would not decide it"}.get(
        finding.more_units, f"; about {finding.more_units:,} more outcomes decide it"
    )
    return (
        f"{what}, {finding.difference:+.4g} in [{finding.low:+.4g}, {finding.high:+.4g}] "
        f"at {sure} whenever one looks: {finding.verdict}{more}"
    )


def _cell(row: dict[str, Any]) -> ArmCell:
    arms = {name: counts_from(counts) for name, counts in row["arms"].items()}
    return ArmCell(**{**row, "arms": arms})
