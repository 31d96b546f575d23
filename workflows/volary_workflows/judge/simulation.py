"""Whole rollouts in numbers: many at once, looked at after every event or at every poll.

`RunningEvidence` is `evidence.log_worse` for many runs, kept up instead of computed anew: the mean
over starting cells is linear, so all that came before a cell is one weight a ratio, and a look
costs one exponential a ratio. That the two agree is tested; that the bound holds is measured in
docs/benchmarks/rollout-judge.md with 20,000 runs a cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from volary_workflows.judge.evidence import RATIOS_WORSE, start_weights
from volary_workflows.judge.series import Floats

LARGEST_LOG = 600.0  # exp of it is finite; nobody asks beyond
MOST_NUMBERS = 2_000_000  # looks of a chunk of runs at a time: 16 MB an array
ANY_STEP, EACH_STEP, FIRST_STEP = "any", "each", "first"
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """One step: the candidate's share of the attempts, and how many attempts it lasts.

    Where `is_exposed` is false, as in a shadow, the candidate's answers reach nobody.
    """

    share: float
    calls: int
    is_exposed: bool = True


@dataclass(frozen=True)
class Looks:
    """Cumulative counts of a stage, shape [runs, looks]; `exposed` are the candidate's calls."""

    candidate: Ints
    baseline: Ints
    exposed: Floats


@dataclass(frozen=True)
class Stops:
    """When each run was stopped: the stage, -1 for never, and the candidate's calls until then."""

    stage: Ints
    exposed: Floats

    @property
    def share_stopped(self) -> float:
        """Return the share of the runs that were stopped."""
        return float((self.stage >= 0).mean())

    def share_stopped_by(self, stage: int) -> float:
        """Return the share of the runs that were stopped in that stage or before."""
        return float(((self.stage >= 0) & (self.stage <= stage)).mean())

    def median_exposed(self) -> float:
        """Return the median of the candidate's calls until the stop, NaN without any."""
        stopped = self.exposed[self.stage >= 0]
        return float(np.median(stopped)) if stopped.size else float("nan")


class RunningEvidence:
    """The e-values of runs over a ramp, against "the rate ratio is at most `bound`".

    `starts` is ANY_STEP for calls, whose evidence may begin at each step; EACH_STEP for sticky
    users counted anew in each (a union bound); FIRST_STEP for one product over the ramp.
    """

    def __init__(self, runs: int, *, bound: float = 1.0, starts: str = ANY_STEP) -> None:
        self._ratios = RATIOS_WORSE * bound
        self._bound = bound
        self._starts = starts
        self._begun = np.zeros((runs, 0, len(self._ratios)))

    def over(self, share: float, candidate: Ints, baseline: Ints) -> Floats:
        """Return the e-value at each look of the next stage, and keep what its last one leaves."""
        carried, rest = self._carried()
        scale = np.log((share * self._bound + 1 - share) / (share * self._ratios + 1 - share))
        value = np.full(candidate.shape, rest)
        both = candidate + baseline
        for k, ratio in enumerate(self._ratios):
            logs = candidate * np.log(ratio / self._bound) + both * scale[k]
            value += np.exp(np.minimum(logs + carried[:, k, None], LARGEST_LOG))
        last = candidate[:, -1:] * np.log(self._ratios / self._bound) + both[:, -1:] * scale
        zero = np.zeros((len(last), 1, len(self._ratios)))
        self._begun = np.concatenate([self._begun, zero], axis=1) + last[:, None, :]
        return value

    def _carried(self) -> tuple[Floats, float]:
        """Return by run and ratio the log of what was earned before, and what has not begun.

        Each ratio's part of the uniform mixture is within the first.
        """
        begun = self._begun
        weights = start_weights(begun.shape[1] + 1)
        uniform = -np.log(len(self._ratios))
        nothing = np.zeros((begun.shape[0], begun.shape[2]))
        if self._starts == EACH_STEP:
            return nothing + uniform + np.log(weights[-1]), 0.0
        if self._starts == FIRST_STEP:
            return uniform + (begun[:, 0] if begun.shape[1] else nothing), 0.0
        past = np.exp(np.minimum(begun, LARGEST_LOG))
        earned = np.einsum("s,rsk->rk", weights[:-1], past) + weights[-1]
        return uniform + np.log(earned), 1 - weights.sum()


def looks_by_event(
    generator: Generator, stage: Stage, runs: int, *, rate: float, ratio: float
) -> Looks:
    """Draw a stage call by call, seen after each event; events beyond its calls do not count."""
    share = stage.share
    each = rate * (share * ratio + 1 - share)
    most = max(1, int(stage.calls * each + 6 * np.sqrt(stage.calls * each) + 10))
    at = generator.geometric(each, (runs, most)).cumsum(axis=1)
    is_in = at <= stage.calls
    is_ours = generator.random((runs, most)) < share * ratio * rate / each
    ours = (is_ours & is_in).cumsum(axis=1)
    theirs = (~is_ours & is_in).cumsum(axis=1)
    at = np.minimum(at, stage.calls)
    plain = share * (1 - rate * ratio) / (1 - each)
    return Looks(ours, theirs, ours + (at - ours - theirs) * plain)


def looks_by_poll(
    generator: Generator, stage: Stage, runs: int, *, rate: float, ratio: float, polls: int
) -> Looks:
    """Draw a stage in equal pieces, seen at the end of each."""
    calls = np.diff(np.linspace(0, stage.calls, min(polls, stage.calls) + 1).astype(np.int64))
    ours_calls = generator.binomial(calls, stage.share, (runs, len(calls)))
    ours = generator.binomial(ours_calls, min(rate * ratio, 1.0))
    theirs = generator.binomial(calls - ours_calls, rate)
    return Looks(ours.cumsum(axis=1), theirs.cumsum(axis=1), ours_calls.cumsum(axis=1) * 1.0)


def simulate(
    generator: Generator,
    stages: Sequence[Stage],
    *,
    rate: float,
    ratio: float,
    runs: int,
    needed: float,
    bound: float = 1.0,
    polls: int = 0,
    is_per_step: bool = False,
) -> Stops:
    """Run rollouts whose errors are `rate` and `ratio * rate`; stop each at an e-value `needed`.

    `polls` 0 looks after every event.
    """
    parts = []
    for chunk in _chunks(stages, runs, rate * max(ratio, 1.0), polls):
        running = RunningEvidence(chunk, bound=bound, starts=EACH_STEP if is_per_step else ANY_STEP)
        stopped, exposed = np.full(chunk, -1), np.zeros(chunk)
        for i, stage in enumerate(stages):
            if polls:
                seen = looks_by_poll(generator, stage, chunk, rate=rate, ratio=ratio, polls=polls)
            else:
                seen = looks_by_event(generator, stage, chunk, rate=rate, ratio=ratio)
            hits = running.over(stage.share, seen.candidate, seen.baseline) >= needed
            until = seen.exposed[np.arange(chunk), hits.argmax(axis=1)]
            is_open = stopped < 0
            is_hit = is_open & hits.any(axis=1)
            whole = np.where(is_open, seen.exposed[:, -1], 0.0)
            exposed += np.where(is_hit, until, whole) * stage.is_exposed
            stopped[is_hit] = i
        parts.append(Stops(stopped, exposed))
    return Stops(
        np.concatenate([part.stage for part in parts]),
        np.concatenate([part.exposed for part in parts]),
    )


def _chunks(stages: Sequence[Stage], runs: int, rate: float, polls: int) -> Iterator[int]:
    looks = polls or max(stage.calls for stage in stages) * rate + 10
    size = max(1, min(runs, int(MOST_NUMBERS / looks)))
    for begin in range(0, runs, size):
        yield min(size, runs - begin)
