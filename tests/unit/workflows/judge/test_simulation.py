"""The simulator against the functions that judge, and what sticky users do to the bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from volary_workflows.judge.evidence import log_worse
from volary_workflows.judge.inputs import Cell, Counts, Guard, Inputs
from volary_workflows.judge.series import Series, series_of
from volary_workflows.judge.simulation import (
    ANY_STEP,
    EACH_STEP,
    FIRST_STEP,
    RunningEvidence,
    Stage,
    looks_by_event,
    looks_by_poll,
    simulate,
)
from volary_workflows.judge.users import BY_FIRST, BY_REQUEST, BY_USER, simulate_users, spread

RAMP = (0.01, 0.05, 0.1, 0.25, 0.5)
ALPHA = 0.01


def upper(hits, runs):
    return stats.beta.ppf(0.99, hits + 1, runs - hits)


@pytest.mark.parametrize("starts", [ANY_STEP, EACH_STEP])
@pytest.mark.parametrize("bound", [1.0, 1.5])
def test_running_evidence_is_the_evidence_that_judges(starts, bound):
    generator = np.random.default_rng(1)
    running = RunningEvidence(4, bound=bound, starts=starts)
    ours, theirs, latest = [], [], np.zeros(4)
    for i, share in enumerate(RAMP):
        looks = looks_by_event(generator, Stage(share, 1_000), 4, rate=0.05, ratio=2.0)
        values = running.over(share, looks.candidate, looks.baseline)
        for n in (0, 7, looks.candidate.shape[1] - 1):
            a = np.stack([*ours, looks.candidate[:, n]], axis=1).astype(float)
            b = np.stack([*theirs, looks.baseline[:, n]], axis=1).astype(float)
            series = Series(
                "errors", np.array(RAMP[: i + 1]), a, a, b, b, is_per_step=starts == EACH_STEP
            )
            found = np.log(np.maximum(values[:, n], latest))
            if starts == ANY_STEP:
                found = np.log(values[:, n])
            assert found == pytest.approx(log_worse(series, bound), abs=1e-9)
        latest = np.maximum(latest, values[:, -1])
        ours.append(looks.candidate[:, -1])
        theirs.append(looks.baseline[:, -1])


def test_first_errors_multiply_over_the_ramp_as_in_the_judge():
    generator = np.random.default_rng(2)
    running = RunningEvidence(1, starts=FIRST_STEP)
    cells, value = [], 0.0
    for i, share in enumerate(RAMP):
        looks = looks_by_event(generator, Stage(share, 1_000), 1, rate=0.05, ratio=3.0)
        ours, theirs = int(looks.candidate[0, -1]), int(looks.baseline[0, -1])
        value = running.over(share, looks.candidate, looks.baseline)[0, -1]
        counts = [
            Counts(1_000, n, users=500, users_with_error=0, users_first_error=n)
            for n in (ours, theirs)
        ]
        cells.append(Cell(str(i), i + 1, share, *counts))
    inputs = Inputs([Guard()], cells, sticky=True)
    found = log_worse(series_of(Guard(), inputs)[0])
    assert found == pytest.approx(math.log(0.5 * value))


def test_stages_draw_the_declared_rates():
    generator = np.random.default_rng(3)
    stage = Stage(0.2, 5_000)
    for looks in (
        looks_by_event(generator, stage, 400, rate=0.02, ratio=3.0),
        looks_by_poll(generator, stage, 400, rate=0.02, ratio=3.0, polls=50),
    ):
        # 400 runs: standard errors 0.4 and 0.45 of 60 and 80 errors, 1.4 of 1,000 calls
        assert looks.candidate[:, -1].mean() == pytest.approx(60, abs=2)
        assert looks.baseline[:, -1].mean() == pytest.approx(80, abs=2)
        assert looks.exposed[:, -1].mean() == pytest.approx(1_000, abs=20)


def test_one_to_five_percent_is_caught_within_150_exposed_calls():
    stages = [Stage(share, 2_000) for share in RAMP]
    found = simulate(
        np.random.default_rng(5), stages, rate=0.01, ratio=5.0, runs=2_000, needed=1 / ALPHA
    )
    assert found.share_stopped >= 0.99
    assert found.median_exposed() <= 150
    assert found.share_stopped_by(0) < found.share_stopped_by(2) <= found.share_stopped


def test_an_equal_candidate_is_stopped_in_at_most_alpha_of_the_runs():
    stages = [Stage(share, 5_000) for share in RAMP]
    found = simulate(
        np.random.default_rng(7), stages, rate=0.01, ratio=1.0, runs=4_000, needed=1 / ALPHA
    )
    assert upper((found.stage >= 0).sum(), 4_000) <= ALPHA


@pytest.mark.parametrize("sigma", [0.0, 2.0])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("counting", [BY_USER, BY_FIRST])
def test_sticky_users_keep_the_bound_also_where_a_better_candidate_leaves_more_to_err(
    sigma, ratio, counting
):
    hits = simulate_users(
        np.random.default_rng(11), RAMP, spread(200, sigma, 60.0), ratio=ratio, runs=2_000,
        needed=1 / ALPHA, counting=counting,
    )  # fmt: skip
    assert upper(hits.sum(), len(hits)) <= ALPHA


def test_sticky_users_counted_by_request_break_the_bound():
    """The tests above have teeth: the same users, counted wrongly, are far beyond alpha."""
    hits = simulate_users(
        np.random.default_rng(13), RAMP, spread(200, 2.0, 60.0), ratio=1.0, runs=1_000,
        needed=1 / ALPHA, counting=BY_REQUEST,
    )  # fmt: skip
    assert hits.mean() > 5 * ALPHA


def test_first_errors_see_more_than_restarted_steps():
    def caught(counting):
        return simulate_users(
            np.random.default_rng(17), RAMP, spread(300, 1.5, 60.0), ratio=3.0, runs=1_000,
            needed=1 / ALPHA, counting=counting,
        ).mean()  # fmt: skip

    assert caught(BY_FIRST) > caught(BY_USER)


def test_users_differ_as_declared():
    equal, unequal = spread(100, 0.0, 50.0), spread(100, 2.0, 50.0)
    assert equal == pytest.approx(np.full(100, 0.5))
    assert unequal.sum() == pytest.approx(50.0)
    assert unequal.max() > 10 > 0.01 > unequal.min()


def test_a_mirror_of_sticky_users_is_counted_by_call():
    # the baseline answered every call of the users, the candidate a tenth: by users it would
    # look far worse, for a user who errs a lot errs in the tenth as well
    ours = Counts(calls=1_000, errors=100, users=90, users_with_error=50)
    theirs = Counts(calls=10_000, errors=1_000, users=100, users_with_error=60)
    cell = Cell("shadow", 1, 0.1, ours, theirs, shadow=True)
    series = series_of(Guard(), Inputs([Guard()], [cell], sticky=True))[0]
    assert (series.candidate_events[0], series.baseline_events[0]) == (100, 1_000)
    assert log_worse(series) < 0
