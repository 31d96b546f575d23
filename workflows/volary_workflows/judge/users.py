"""Sticky users in numbers: they come back, and some err far more often than others.

A user's arm is one draw, u < q for a uniform u that stays while the share q rises; the user's
errors come at a rate of their own. Three ways to count them, of which one is wrong:

- `BY_USER`: the first error of each user in each step, a union bound over steps.
- `BY_FIRST`: half of alpha on that, half on the first errors of the whole rollout, multiplied.
- `BY_REQUEST`: every error, as if each were a draw of its own. A user who errs a lot brings many
  events to one arm, and the bound is broken: shown as a fact, used nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from volary_workflows.judge.series import Floats
from volary_workflows.judge.simulation import (
    ANY_STEP,
    EACH_STEP,
    FIRST_STEP,
    MOST_NUMBERS,
    RunningEvidence,
)

BY_USER, BY_FIRST, BY_REQUEST = "user", "first", "request"
Bools = NDArray[np.bool_]


def spread(users: int, sigma: float, events: float) -> Floats:
    """Return each user's expected errors a step, lognormal with that sigma, `events` in sum.

    The quantiles of the distribution stand for its draws, so that every run has the same users.
    """
    normal = NormalDist()
    sizes = np.exp([sigma * normal.inv_cdf((i + 0.5) / users) for i in range(users)])
    return sizes * events / sizes.sum()


def simulate_users(
    generator: Generator,
    shares: Sequence[float],
    intensities: Floats,
    *,
    ratio: float,
    runs: int,
    needed: float,
    counting: str,
) -> Bools:
    """Return which runs are ever stopped, seen after each event of a step.

    The candidate's users err at `ratio` times their rate.
    """
    looks = max(len(intensities), 2 * intensities.sum())
    size = max(1, min(runs, int(MOST_NUMBERS / looks)))
    parts = []
    for begin in range(0, runs, size):
        chunk = min(size, runs - begin)
        draw = _by_request if counting == BY_REQUEST else _by_user
        parts.append(draw(generator, shares, intensities, ratio, chunk, needed, counting))
    return np.concatenate(parts)


def _by_user(
    generator: Generator,
    shares: Sequence[float],
    intensities: Floats,
    ratio: float,
    runs: int,
    needed: float,
    counting: str,
) -> Bools:
    arms = generator.random((runs, len(intensities)))
    before = np.zeros(arms.shape, bool)
    each, whole = RunningEvidence(runs, starts=EACH_STEP), RunningEvidence(runs, starts=FIRST_STEP)
    stopped: Bools = np.zeros(runs, np.bool_)
    parts = 2.0 if counting == BY_FIRST else 1.0
    for share in shares:
        is_ours = arms < share
        rates = np.where(is_ours, ratio, 1.0) * intensities
        at = generator.standard_exponential(arms.shape) / rates
        order = at.argsort(axis=1)
        stopped |= _hits(each, share, is_ours, at < 1, order, needed * parts)
        if counting == BY_FIRST:
            stopped |= _hits(whole, share, is_ours, (at < 1) & ~before, order, needed * parts)
        before |= at < 1
    return stopped


def _hits(
    running: RunningEvidence,
    share: float,
    is_ours: Bools,
    has_erred: Bools,
    order: NDArray[np.intp],
    needed: float,
) -> Bools:
    events = np.take_along_axis(has_erred, order, axis=1)
    ours = np.take_along_axis(is_ours, order, axis=1)
    most = int(events.sum(axis=1).max()) if events.any() else 1
    # events of a run in their order; the places of users without one are left out
    position = np.where(events, events.cumsum(axis=1) - 1, most)
    counted = np.zeros((len(events), most + 1), dtype=np.int64)
    np.put_along_axis(counted, position, (ours & events).astype(np.int64), axis=1)
    candidate = counted[:, :most].cumsum(axis=1)
    number = np.minimum(np.arange(1, most + 1), events.sum(axis=1)[:, None])
    highest: Floats = running.over(share, candidate, number - candidate).max(axis=1)
    return highest >= needed


def _by_request(
    generator: Generator,
    shares: Sequence[float],
    intensities: Floats,
    ratio: float,
    runs: int,
    needed: float,
    counting: str,  # noqa: ARG001 - the shape of both ways to draw
) -> Bools:
    arms = generator.random((runs, len(intensities)))
    running = RunningEvidence(runs, starts=ANY_STEP)
    stopped: Bools = np.zeros(runs, np.bool_)
    rows = np.arange(runs)[:, None]
    for share in shares:
        number = generator.poisson(intensities.sum() * max(ratio, 1.0), runs)
        most = max(1, int(number.max()))
        chances = intensities.cumsum() / intensities.sum()
        who = np.searchsorted(chances, generator.random((runs, most))).clip(max=len(chances) - 1)
        is_ours = arms[rows, who] < share
        kept = generator.random((runs, most)) < np.where(is_ours, ratio, 1.0) / max(ratio, 1.0)
        is_event = (np.arange(most) < number[:, None]) & kept
        ours, theirs = (is_ours & is_event).cumsum(axis=1), (~is_ours & is_event).cumsum(axis=1)
        stopped |= (running.over(share, ours, theirs) >= needed).any(axis=1)
    return stopped
