"""Units in other shares than declared are found, under any number of looks, and no others are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from volary_workflows.judge.assignment import log_sample_ratio

ALPHA = 0.01


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
@pytest.mark.parametrize("scale", [0, 7, 400])
def test_it_is_a_martingale_while_the_shares_hold(shares, scale):
    """The mean over the next unit's arm is the evidence so far: that is what bounds every look."""
    counts = [scale * (i + 1) for i in range(len(shares))]
    now = log_sample_ratio(counts, shares)
    growth = sum(
        share * math.exp(log_sample_ratio(_with_one_more(counts, i), shares) - now)
        for i, share in enumerate(shares)
    )
    assert growth == pytest.approx(1.0)


def _with_one_more(counts, arm):
    return [count + (i == arm) for i, count in enumerate(counts)]


def test_nothing_seen_says_nothing():
    assert log_sample_ratio([0, 0], [0.5, 0.5]) == pytest.approx(0.0)


def first_alarm(drawn: float, declared: float, units: int, seed: int, every: int = 100) -> int:
    """Return after how many units the alarm rises, 0 for never."""
    arms = np.random.default_rng(seed).random(units) < drawn
    for seen in range(every, units + 1, every):
        ours = int(arms[:seen].sum())
        shares = [declared, 1 - declared]
        if log_sample_ratio([ours, seen - ours], shares) >= -math.log(ALPHA):
            return seen
    return 0


def test_equal_shares_raise_no_more_alarms_than_declared():
    alarms = sum(first_alarm(0.3, 0.3, 3_000, seed) > 0 for seed in range(300))
    assert alarms <= 3 + 2 * math.sqrt(3)  # 1 % of 300, and twice the chance around it


@pytest.mark.parametrize(("drawn", "within"), [(0.45, 10_000), (0.48, 40_000)])
def test_a_broken_assignment_is_found(drawn, within):
    found = [first_alarm(drawn, 0.5, within, seed, every=1_000) for seed in range(10)]
    assert all(found)
