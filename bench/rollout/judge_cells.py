"""The cells of the judge's benchmark: many whole rollouts each, drawn and stopped by the judge.

Every cell has a seed of its own, so any of them can be run again alone and gives the same counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.random import Generator
from volary_workflows.judge.evidence import log_not_inferior
from volary_workflows.judge.series import Series
from volary_workflows.judge.simulation import Stage, simulate
from volary_workflows.judge.users import BY_FIRST, BY_REQUEST, BY_USER, simulate_users, spread

ALPHA = 0.01
RUNS, QUICK_RUNS, POWER_RUNS = 20_000, 2_000, 2_000
USERS = 300
RAMPS = {
    "1 %": (0.01,),
    "10 %": (0.1,),
    "50 %": (0.5,),
    "1-5-10-25-50 %": (0.01, 0.05, 0.1, 0.25, 0.5),
}
RAMP = "1-5-10-25-50 %"
CALLS_A_STEP = {0.001: 20_000, 0.01: 20_000, 0.05: 4_000, 0.2: 2_000}
RANDOM = "random"
UNEQUAL = 2.0  # sigma of a lognormal: the worst tenth of users makes 3/4 of the errors
QUICK_RATES = (0.01, 0.2)
LOOKS_OF_NAIVE, LOOKS_OF_RANKS = 1_000, 100
BINS_OF_RANKS = 60  # as many as gateway keeps counts of latencies in
CALLS_OF_RANKS, CHUNK_OF_RANKS = 40, 250  # calls a look, half of them the candidate's
Z_OF_ALPHA = 2.326  # one-sided 1 %


@dataclass(frozen=True)
class Cell:
    """Equal versions (ratio 1), or better ones, under one traffic and one way to count."""

    rate: float
    ramp: str
    counting: str = RANDOM
    sigma: float = 0.0
    ratio: float = 1.0

    @property
    def name(self) -> str:
        """Return what the table calls it; also the seed."""
        users = "unequal" if self.sigma else "equal"
        return f"{self.rate:g}/{self.ramp}/{self.counting}/{users}/{self.ratio:g}"

    @property
    def is_a_guarantee(self) -> bool:
        """Say whether the judge counts like this: by request it does not, for sticky users."""
        return self.counting != BY_REQUEST

    @property
    def events_a_step(self) -> float:
        """Return how many errors of equal versions one step expects."""
        return self.rate * CALLS_A_STEP[self.rate]

    def stopped(self, runs: int) -> int:
        """Return how many of the runs are stopped, seen after every single event."""
        generator = np.random.default_rng(crc32(self.name.encode()))
        shares = RAMPS[self.ramp]
        if self.counting == RANDOM:
            stages = [Stage(share, CALLS_A_STEP[self.rate]) for share in shares]
            found = simulate(
                generator, stages, rate=self.rate, ratio=self.ratio, runs=runs, needed=1 / ALPHA
            )
            return int((found.stage >= 0).sum())
        users = spread(USERS, self.sigma, self.events_a_step)
        hits = simulate_users(
            generator, shares, users, ratio=self.ratio, runs=runs, needed=1 / ALPHA,
            counting=self.counting,
        )  # fmt: skip
        return int(hits.sum())


def cells(*, is_quick: bool) -> Iterator[Cell]:
    """Yield every cell: rate x share or ramp x random or sticky x equal or unequal users."""
    rates = QUICK_RATES if is_quick else tuple(CALLS_A_STEP)
    ramps = (RAMP,) if is_quick else tuple(RAMPS)
    for rate in rates:
        for ramp in ramps:
            yield Cell(rate, ramp)
        for ramp in ramps:
            for counting in (BY_USER, BY_FIRST):
                for sigma in (0.0, UNEQUAL):
                    yield Cell(rate, ramp, counting, sigma)
    for counting in (BY_USER, BY_FIRST):  # a better candidate leaves more users to err later
        yield Cell(0.01, RAMP, counting, UNEQUAL, ratio=0.5)
    for sigma in (0.0, UNEQUAL):
        yield Cell(0.01, RAMP, BY_REQUEST, sigma)


@dataclass(frozen=True)
class Power:
    """One regression on the ramp, by calls drawn at random."""

    rate: float
    ratio: float
    stopped: float
    median_exposed: float
    by_stage: tuple[float, ...]


def power(rate: float, ratio: float, calls_a_step: int, *, runs: int, ramp: str = RAMP) -> Power:
    """Return how often and how soon one regression is stopped."""
    stages = [Stage(share, calls_a_step) for share in RAMPS[ramp]]
    generator = np.random.default_rng(crc32(f"{rate}/{ratio}/{ramp}/{calls_a_step}".encode()))
    found = simulate(generator, stages, rate=rate, ratio=ratio, runs=runs, needed=1 / ALPHA)
    by_stage = tuple(found.share_stopped_by(i) for i in range(len(stages)))
    return Power(rate, ratio, found.share_stopped, found.median_exposed(), by_stage)


def passed_by_users(sigma: float, events: float, runs: int) -> tuple[float, float]:
    """Return how often a candidate with 1.5 times the errors of each user passes a margin of 0.5.

    And which share of the users has met an error by the end of the step, which 2,000 users share
    equally: who errs often drops out of both sides, so the ratio of first errors falls.
    """
    generator = np.random.default_rng(crc32(f"pass/{sigma}/{events}".encode()))
    intensities = spread(2_000, sigma, events)
    is_ours = generator.random((runs, len(intensities))) < 0.5
    at = generator.standard_exponential(is_ours.shape) / np.where(is_ours, 1.5, 1.0) / intensities
    passed = np.zeros(runs, bool)
    for end in np.linspace(0.02, 1.0, 50):
        ours, theirs = (
            ((at < end) & side).sum(axis=1)[:, None].astype(np.float64)
            for side in (is_ours, ~is_ours)
        )
        series = Series("users", np.array([0.5]), ours, ours, theirs, theirs, is_per_step=True)
        passed |= log_not_inferior(series, 0.5) >= -math.log(ALPHA)
    return float(passed.mean()), float((at < 1).mean())


def naive_stopped(rate: float, runs: int) -> float:
    """Return how often a z-test of 1 % at each of 1,000 looks stops an equal candidate."""
    generator = np.random.default_rng(crc32(b"naive"))
    calls, share = 20, 0.5
    ours_calls = generator.binomial(calls, share, (runs, LOOKS_OF_NAIVE)).cumsum(axis=1)
    all_calls = np.arange(1, LOOKS_OF_NAIVE + 1) * calls
    each = np.diff(ours_calls, axis=1, prepend=0)
    ours = generator.binomial(each, rate).cumsum(axis=1)
    theirs = generator.binomial(calls - each, rate).cumsum(axis=1)
    their_calls = all_calls - ours_calls
    pooled = np.maximum((ours + theirs) / all_calls, 1e-9)
    error = np.sqrt(
        pooled * (1 - pooled) * (1 / np.maximum(ours_calls, 1) + 1 / np.maximum(their_calls, 1))
    )
    z = (ours / np.maximum(ours_calls, 1) - theirs / np.maximum(their_calls, 1)) / error
    return float((z >= Z_OF_ALPHA).any(axis=1).mean())


def naive_ranks_stopped(runs: int) -> float:
    """Return how often a Mann-Whitney test of 1 % at each of 100 looks stops an equal candidate.

    Ranks do not depend on the distribution of the latencies, so each falls into any of the bins
    alike; within a bin it ties (Mann and Whitney, Annals of Mathematical Statistics 18, 1947).
    """
    generator = np.random.default_rng(crc32(b"naive ranks"))
    chunks = [generator.spawn(1)[0] for _ in range(0, runs, CHUNK_OF_RANKS)]
    sizes = [min(CHUNK_OF_RANKS, runs - i * CHUNK_OF_RANKS) for i in range(len(chunks))]
    stopped = sum(_ranked(each, size) for each, size in zip(chunks, sizes, strict=True))
    return stopped / runs


def _ranked(generator: Generator, runs: int) -> int:
    even = np.full(BINS_OF_RANKS, 1 / BINS_OF_RANKS)
    shape = (runs, LOOKS_OF_RANKS)
    ours, theirs = (
        generator.multinomial(CALLS_OF_RANKS // 2, even, shape).cumsum(axis=1).astype(np.float64)
        for _ in range(2)
    )
    below = theirs.cumsum(axis=2) - theirs / 2  # a tie counts half
    slower = (ours * below).sum(axis=2)
    each = np.arange(1, LOOKS_OF_RANKS + 1) * CALLS_OF_RANKS / 2
    both = 2 * each
    tied = ours + theirs
    ties = (tied**3 - tied).sum(axis=2) / (both * (both - 1))
    z = (slower - each * each / 2) / np.sqrt(each * each / 12 * (both + 1 - ties))
    return int((z >= Z_OF_ALPHA).any(axis=1).sum())
