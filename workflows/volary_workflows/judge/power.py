"""What a declared rollout can see before it starts: power, exposed calls, and how long it takes.

Simulated by `simulation` with the rates that are given; a guard is taken alone, so that a rollout
with several stops at least as often. Nothing here is a promise about a candidate: it says what a
regression of a stated size would meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from volary_workflows.judge.findings import least_number, log_good
from volary_workflows.judge.inputs import (
    COUNTED_KINDS,
    ERROR_RATE,
    PREDICTION_DISTRIBUTION,
    QUALITY,
    Guard,
)
from volary_workflows.judge.means import Comparison, OutcomeComparison, ScoreComparison
from volary_workflows.judge.series import Series
from volary_workflows.judge.simulation import Stage, Stops, simulate

RATIOS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
SLOW_RATES = (0.5, 0.05, 0.01)  # of the baseline above its own p50, p95 and p99
POINTS = (0.01, 0.02, 0.05)
DISCORDANT = 0.05  # pairs on which two good versions disagree, half each way
WORST_VARIANCE = 0.25  # of a score in [0, 1]
POLLS = 100
RUNS = 1_000
SEED = 20_240_501  # fixed: the same plan gives the same table
BLIND = 0.5  # a step that sees a regression less often than this is called blind to it
NEVER = -1.0


@dataclass(frozen=True)
class PlannedStage:
    """One step as declared: the candidate's share of the calls, or the mirrored fraction."""

    name: str
    share: float
    min_duration_s: float
    min_requests: int
    is_shadow: bool = False

    @property
    def event_share(self) -> float:
        """Return the candidate's share of the attempts."""
        return self.share / (1 + self.share) if self.is_shadow else self.share


@dataclass(frozen=True)
class StageTime:
    """How long a step takes with a candidate like the baseline, and what it waits for.

    `evidence_s` is the time until every promoting guard passes, -1 for never; `binding` is
    `duration`, `requests` or `evidence`.
    """

    name: str
    share: float
    candidate_calls_per_s: float
    requests_s: float
    evidence_s: float
    duration_s: float
    binding: str


@dataclass(frozen=True)
class GuardPower:
    """What one guard does about one regression; `by_stage` is cumulative.

    A regression below the guard's floor pauses the rollout for a person in place of ending it.
    """

    metric: str
    kind: str
    baseline_rate: float
    candidate_rate: float
    ratio: float
    stopped: float
    by_stage: list[float]
    median_exposed: float | None
    is_below_floor: bool


@dataclass(frozen=True)
class ScoresNeeded:
    """How many scores of late labels or of the business show an effect, at the expected rates."""

    metric: str
    kind: str
    effect: float
    count: int
    unit: str


@dataclass(frozen=True)
class Plan:
    """Everything that the plan says."""

    calls_per_s: float
    baseline_error: float
    stages: list[StageTime]
    bake_s: float
    total_s: float
    powers: list[GuardPower]
    scores: list[ScoresNeeded]
    warnings: list[str] = field(default_factory=list)
    runs: int = RUNS

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def plan_rollout(
    stages: Sequence[PlannedStage],
    guards: Sequence[Guard],
    *,
    bake_s: float,
    max_extensions: int,
    calls_per_s: float,
    baseline_error: float,
    is_sticky: bool = False,
    runs: int = RUNS,
) -> Plan:
    """Return what the rollout can see at this traffic.

    ValueError when the rates make no rollout: no calls, or an error rate outside [0, 1).
    """
    if not 0 < calls_per_s < math.inf:
        raise ValueError("calls_per_s must be above 0")
    if not 0 <= baseline_error < 1:
        raise ValueError("baseline_error must be a share below 1")
    times = list(_times(stages, guards, calls_per_s, baseline_error))
    drawn = [
        Stage(
            stage.event_share,
            max(1, round(time.duration_s * calls_per_s * (1 + stage.share * stage.is_shadow))),
            is_exposed=not stage.is_shadow,
        )
        for stage, time in zip(stages, times, strict=True)
    ]
    powers = [
        power
        for guard in guards
        if guard.kind in COUNTED_KINDS
        for power in _powers(guard, drawn, baseline_error, is_sticky=is_sticky, runs=runs)
    ]
    return Plan(
        calls_per_s=calls_per_s,
        baseline_error=baseline_error,
        stages=times,
        bake_s=bake_s,
        total_s=sum(time.duration_s for time in times) + bake_s,
        powers=powers,
        scores=[need for guard in guards for need in _scores_needed(guard)],
        warnings=[
            *_waits(stages, times, max_extensions),
            *_blind_steps(stages, powers, guards),
            *_floors(powers),
            *_notes(powers, guards, is_sticky=is_sticky),
        ],
        runs=runs,
    )


def _times(
    stages: Sequence[PlannedStage], guards: Sequence[Guard], calls_per_s: float, error: float
) -> Iterator[StageTime]:
    shares: list[float] = []
    attempts: list[float] = []
    for stage in stages:
        rate = stage.share * calls_per_s
        shares.append(stage.event_share)
        # the judge waits for a PASS in steps only: a shadow ends with its time and requests
        calls = 0.0
        if not stage.is_shadow:
            needs = [
                _calls_needed(guard, shares, attempts, error)
                for guard in guards
                if guard.promotes and guard.kind in COUNTED_KINDS
            ]
            calls = -1.0 if any(need < 0 for need in needs) else max(needs, default=0)
        evidence_s = NEVER if calls < 0 else calls / rate
        waits = {
            "duration": stage.min_duration_s,
            "requests": stage.min_requests / rate,
            "evidence": evidence_s,
        }
        binding = max(waits, key=lambda name: waits[name])
        yield StageTime(
            stage.name, stage.share, rate, waits["requests"], evidence_s, waits[binding],
            "never" if evidence_s < 0 else binding,
        )  # fmt: skip
        attempts.append(waits[binding] * rate / stage.event_share)


def _calls_needed(guard: Guard, shares: list[float], before: list[float], error: float) -> int:
    """Return the candidate's calls in the last step until an equal candidate passes."""

    def is_enough(calls: float) -> bool:
        attempts = np.array([*before, calls / shares[-1]])
        series = [
            _expected(guard, np.array(shares), attempts, rate, i)
            for i, rate in enumerate(_rates(guard, error))
        ]
        return log_good(guard, series) >= -math.log(guard.alpha)

    return 0 if is_enough(0.0) else least_number(is_enough)


def _expected(
    guard: Guard, shares: np.ndarray, attempts: np.ndarray, rate: float, index: int
) -> Series:
    ours, theirs = attempts * shares, attempts * (1 - shares)
    is_last = index == len(_rates(guard, rate)) - 1
    has_limit = guard.kind == ERROR_RATE or (is_last and guard.limit_us == 0)
    return Series(
        guard.metric, shares, ours * rate, ours, theirs * rate, theirs,
        limit=guard.ceiling if has_limit else 0.0,
    )  # fmt: skip


def _rates(guard: Guard, error: float) -> tuple[float, ...]:
    return (error,) if guard.kind == ERROR_RATE else SLOW_RATES


def _powers(
    guard: Guard, stages: list[Stage], error: float, *, is_sticky: bool, runs: int
) -> Iterator[GuardPower]:
    """Return the power against each ratio; for latency at the p95 alone, so at least that."""
    is_error = guard.kind == ERROR_RATE
    rate = error if is_error else SLOW_RATES[1]
    needed = (1 if is_error else len(SLOW_RATES) + 1) / guard.alpha
    for ratio in RATIOS:
        if rate == 0 or rate * ratio >= 1:
            continue
        stops = _simulated(guard, stages, rate, ratio, needed, is_sticky=is_sticky, runs=runs)
        exposed = stops.median_exposed()
        yield GuardPower(
            metric=guard.metric,
            kind=guard.kind,
            baseline_rate=rate,
            candidate_rate=rate * ratio,
            ratio=ratio,
            stopped=stops.share_stopped,
            by_stage=[stops.share_stopped_by(i) for i in range(len(stages))],
            median_exposed=None if math.isnan(exposed) else exposed,
            is_below_floor=ratio > 1 and rate * (ratio - 1) < guard.min_effect,
        )


def _simulated(
    guard: Guard,
    stages: list[Stage],
    rate: float,
    ratio: float,
    needed: float,
    *,
    is_sticky: bool,
    runs: int,
) -> Stops:
    return simulate(
        np.random.default_rng(SEED),
        [stage for stage in stages if stage.share < 1],
        rate=rate,
        ratio=ratio,
        runs=runs,
        needed=needed,
        bound=guard.tolerated_ratio,
        polls=POLLS,
        is_per_step=is_sticky,
    )


def _scores_needed(guard: Guard) -> Iterator[ScoresNeeded]:
    """Return how many scores show each effect when they come exactly as expected."""
    if guard.kind in COUNTED_KINDS or guard.kind == PREDICTION_DISTRIBUTION:
        return
    needed = -math.log(guard.alpha)
    for points in POINTS:

        def is_enough(count: float, points: float = points) -> bool:
            return _typical(guard, count, points).log_above(0.0) >= needed

        unit = "labelled pairs" if guard.kind == QUALITY else "scores at an equal split"
        yield ScoresNeeded(guard.metric, guard.kind, points, least_number(is_enough), unit)


def _typical(guard: Guard, count: float, points: float) -> Comparison:
    if guard.kind == QUALITY:
        half = DISCORDANT / 2
        return OutcomeComparison(
            count * (half + points), count * half, count * (1 - DISCORDANT - points)
        )
    scale = np.array([0.25])  # q (1 - q) at q = 1/2
    sums = np.array([count])
    return ScoreComparison(sums, sums * scale * points, sums * scale * WORST_VARIANCE, scale)


def _waits(
    stages: Sequence[PlannedStage], times: Sequence[StageTime], max_extensions: int
) -> Iterator[str]:
    for stage, time in zip(stages, times, strict=True):
        longest = stage.min_duration_s * (1 + max_extensions)
        if time.evidence_s < 0:
            yield f"{stage.name}: no number of calls at these rates makes an equal candidate pass"
        elif time.duration_s > longest:
            yield (
                f"{stage.name}: needs {time.duration_s:,.0f} s of its {time.binding} and is given "
                f"up after {longest:,.0f} s: it would end in evidence_timeout"
            )


def _blind_steps(
    stages: Sequence[PlannedStage], powers: Sequence[GuardPower], guards: Sequence[Guard]
) -> Iterator[str]:
    """Say of each guard and step which regressions it misses, of those that the guard is for."""
    for guard in guards:
        worse = [
            power
            for power in powers
            if power.metric == guard.metric and power.ratio > guard.tolerated_ratio
        ]
        for i, stage in enumerate(stages):
            missed = [p for p in worse if i < len(p.by_stage) and p.by_stage[i] < BLIND]
            if missed:
                last = missed[-1]
                yield (
                    f"{stage.name} ({stage.share:.3g} of the calls): a rise of {guard.metric} by "
                    f"a factor of {last.ratio:g} is seen by its end with probability "
                    f"{last.by_stage[i]:.0%}: it cannot see regressions as small as that"
                )


def _floors(powers: Sequence[GuardPower]) -> Iterator[str]:
    for power in powers:
        if power.is_below_floor and power.stopped > BLIND:
            yield (
                f"{power.metric}: a rise from {power.baseline_rate:.3%} to "
                f"{power.candidate_rate:.3%} is below the floor: it pauses, nothing is rolled back"
            )


def _notes(
    powers: Sequence[GuardPower], guards: Sequence[Guard], *, is_sticky: bool
) -> Iterator[str]:
    kinds = {power.kind for power in powers}
    if ERROR_RATE not in kinds and any(guard.kind == ERROR_RATE for guard in guards):
        yield "with no errors at the baseline there is no ratio to test: only the ceiling counts"
    if is_sticky:
        yield (
            "sticky users are counted once a step: read calls as users, and their rate as that "
            "of users who were not seen in the step"
        )
