"""The stated error rate and power, by simulation of the very functions that judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from volary_workflows.judge.evidence import log_below_limit, log_not_inferior, log_worse
from volary_workflows.judge.series import Series
from volary_workflows.judge.simulation import RunningEvidence

ALPHA = 0.01
RAMP = (0.01, 0.05, 0.1, 0.25, 0.5)


def clopper_pearson_upper(hits, runs, confidence=0.99):
    """Return the exact upper bound on a binomial probability, by bisection."""

    def at_most(probability):
        log_terms = [
            math.lgamma(runs + 1)
            - math.lgamma(k + 1)
            - math.lgamma(runs - k + 1)
            + k * math.log(probability)
            + (runs - k) * math.log1p(-probability)
            for k in range(hits + 1)
        ]
        return sum(math.exp(term) for term in log_terms)

    low, high = 1e-12, 1 - 1e-12
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 1 - confidence else (low, middle)
    return high


def watched(generator, *, runs, calls_a_step, look, rates, ramp=RAMP, test=log_worse, limit=0.0):
    """Return per run whether the test ever crossed 1/alpha and the candidate's calls until then."""
    shape = (runs, len(ramp))
    ours, our_calls, theirs, their_calls = (np.zeros(shape) for _ in range(4))
    crossed, exposed = np.zeros(runs, bool), np.zeros(runs)
    for step, share in enumerate(ramp):
        for _ in range(calls_a_step // look):
            calls = generator.binomial(look, share, runs)
            our_calls[:, step] += calls
            their_calls[:, step] += look - calls
            ours[:, step] += generator.binomial(calls, rates[1])
            theirs[:, step] += generator.binomial(look - calls, rates[0])
            seen = slice(0, step + 1)
            series = Series(
                "errors",
                np.array(ramp[seen]),
                ours[:, seen],
                our_calls[:, seen],
                theirs[:, seen],
                their_calls[:, seen],
                limit=limit,
            )
            exposed += np.where(crossed, 0, calls)
            crossed |= test(series) >= -math.log(ALPHA)
    return crossed, exposed


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2])
def test_an_equal_candidate_is_rolled_back_in_at_most_alpha_of_the_rollouts(rate):
    generator = np.random.default_rng(int(rate * 1e6))
    crossed, _ = watched(generator, runs=4_000, calls_a_step=2_000, look=100, rates=(rate, rate))
    assert clopper_pearson_upper(int(crossed.sum()), crossed.size) <= ALPHA


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_looking_after_every_single_event_changes_nothing(share):
    # at 50 % and a look an event the true rate is about 0.8 %: the bound needs 24,000 runs.
    # RunningEvidence is held to log_worse in test_simulation.py
    generator = np.random.default_rng(11)
    runs, events, chunks = 4_000, 200, 6
    hits = 0
    for _ in range(chunks):
        ours = (generator.random((runs, events)) < share).cumsum(axis=1)
        theirs = np.arange(1, events + 1) - ours
        values = RunningEvidence(runs).over(share, ours, theirs)
        hits += int((values >= 1 / ALPHA).any(axis=1).sum())
    assert clopper_pearson_upper(hits, runs * chunks) <= ALPHA


def test_an_inferior_candidate_is_promoted_in_at_most_alpha_of_the_rollouts():
    def not_inferior(series):
        return log_not_inferior(series, 0.5)

    crossed, _ = watched(
        np.random.default_rng(5),
        runs=4_000,
        calls_a_step=2_000,
        look=100,
        rates=(0.02, 0.03),
        test=not_inferior,
    )
    assert clopper_pearson_upper(int(crossed.sum()), crossed.size) <= ALPHA


def test_a_candidate_at_the_limit_is_below_it_in_at_most_alpha_of_the_rollouts():
    crossed, _ = watched(
        np.random.default_rng(13),
        runs=4_000,
        calls_a_step=2_000,
        look=100,
        rates=(0.02, 0.02),
        test=log_below_limit,
        limit=0.02,
    )
    assert clopper_pearson_upper(int(crossed.sum()), crossed.size) <= ALPHA


def test_one_to_five_percent_is_caught_within_150_exposed_calls():
    crossed, exposed = watched(
        np.random.default_rng(3), runs=2_000, calls_a_step=2_000, look=50, rates=(0.01, 0.05)
    )
    assert crossed.mean() >= 0.99
    assert np.median(exposed) <= 150


def test_the_naive_test_would_not_hold():
    """The bound above has teeth: a z-test at each look breaks it many times over."""

    def z_test(series):
        ours, theirs = series.candidate_events.sum(axis=-1), series.baseline_events.sum(axis=-1)
        n, m = series.candidate_calls.sum(axis=-1), series.baseline_calls.sum(axis=-1)
        pooled = np.clip((ours + theirs) / (n + m), 1e-9, 1)
        z = (ours / np.maximum(n, 1) - theirs / m) / np.sqrt(
            pooled * (1 / np.maximum(n, 1) + 1 / m)
        )
        return np.where(z > 2.326, -math.log(ALPHA), 0.0)

    crossed, _ = watched(
        np.random.default_rng(9),
        runs=500,
        calls_a_step=2_000,
        look=50,
        rates=(0.05, 0.05),
        test=z_test,
    )
    assert crossed.mean() > 5 * ALPHA
