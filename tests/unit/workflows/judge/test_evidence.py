"""Hand-computed values of the e-processes, and that their expectation is 1 or less."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volary_workflows.judge import evidence
from volary_workflows.judge.series import Series

counts = st.integers(min_value=0, max_value=500)


def series(cells, *, limit=0.0, is_per_step=False):
    """Make a series of (share, candidate events, candidate calls, baseline events, calls)."""
    columns = [np.array(column, dtype=float) for column in zip(*cells, strict=True)]
    return Series("errors", *columns, limit=limit, is_per_step=is_per_step)


def by_hand(candidate, baseline, share, ratio, bound=1.0):
    """Multiply the likelihood ratio event by event, as the definition has it."""

    def probability(rate):
        return share * rate / (share * rate + 1 - share)

    ours = probability(ratio) / probability(bound)
    theirs = (1 - probability(ratio)) / (1 - probability(bound))
    return ours**candidate * theirs**baseline


def test_one_candidate_event_at_ten_percent():
    one = series([(0.1, 1, 10, 0, 90)])
    each = [by_hand(1, 0, 0.1, ratio) for ratio in evidence.RATIOS_WORSE]
    assert by_hand(1, 0, 0.1, 2.0) == pytest.approx(2 / 1.1)
    expected = 0.9 * np.mean(each) + 0.1
    assert float(evidence.log_worse(one)) == pytest.approx(math.log(expected))


def test_cells_of_a_ramp_multiply_and_may_start_late():
    two = series([(0.01, 2, 50, 3, 4950), (0.5, 4, 50, 1, 50)])
    first = np.array([by_hand(2, 3, 0.01, r) for r in evidence.RATIOS_WORSE])
    second = np.array([by_hand(4, 1, 0.5, r) for r in evidence.RATIOS_WORSE])
    weights = evidence.start_weights(2)
    expected = weights[0] * (first * second).mean() + weights[1] * second.mean() + 1 - weights.sum()
    assert float(evidence.log_worse(two)) == pytest.approx(math.log(expected))


def test_weights_of_starts_never_exceed_one():
    for cells in range(1, 60):
        assert 0.9 <= evidence.start_weights(cells).sum() < 1


def test_non_inferiority_against_its_bound():
    one = series([(0.5, 3, 100, 9, 100)])
    ratios = evidence.SHARES_OF_BOUND[1:] * 1.5
    expected = np.mean([by_hand(3, 9, 0.5, ratio, 1.5) for ratio in ratios])
    assert float(evidence.log_not_inferior(one, 0.5)) == pytest.approx(math.log(expected))


def test_a_clean_candidate_is_below_five_percent_after_122_calls():
    def clean(calls):
        return float(evidence.log_below_limit(series([(0.1, 0, calls, 0, 9 * calls)], limit=0.05)))

    powers = [(1 - share * 0.05) / 0.95 for share in evidence.SHARES_OF_BOUND]
    mixed = np.dot(evidence.WEIGHTS_OF_BOUND, [power**100 for power in powers])
    assert clean(100) == pytest.approx(math.log(0.5 * mixed + 0.5))
    assert clean(100) < math.log(100) < clean(122)


def test_an_incident_in_an_early_cell_does_not_stand_in_the_way_for_ever():
    incident = (0.5, 50, 300, 50, 300)
    clean = (0.1, 0, 150, 0, 1350)
    assert evidence.log_below_limit(series([incident], limit=0.05)) < 0
    assert evidence.log_below_limit(series([incident, clean], limit=0.05)) > math.log(100)


def test_mirrored_calls_have_expectation_at_most_one_however_the_outcomes_depend():
    fraction, rate, ratio = 0.3, 0.2, 3.0
    share = fraction / (1 + fraction)
    for both in (0.0, fraction * rate * rate, fraction * rate):  # exclusive, independent, equal
        ours, theirs = fraction * rate - both, rate - both
        expectation = (
            both * by_hand(1, 1, share, ratio)
            + ours * by_hand(1, 0, share, ratio)
            + theirs * by_hand(0, 1, share, ratio)
            + (1 - both - ours - theirs)
        )
        assert expectation <= 1 + 1e-12


@given(
    share=st.floats(0.001, 0.999),
    true_ratio=st.floats(0.0, 1.0),
    alternative=st.sampled_from(list(evidence.RATIOS_WORSE)),
)
def test_one_event_has_expectation_at_most_one_under_the_null(share, true_ratio, alternative):
    ours = share * true_ratio / (share * true_ratio + 1 - share)
    expectation = ours * by_hand(1, 0, share, alternative) + (1 - ours) * by_hand(
        0, 1, share, alternative
    )
    assert expectation <= 1 + 1e-9


@given(
    share=st.floats(0.001, 0.999),
    excess=st.floats(1.0, 50.0),
    part=st.sampled_from(list(evidence.SHARES_OF_BOUND[1:])),
    margin=st.floats(0.01, 2.0),
)
def test_non_inferiority_has_expectation_at_most_one_under_its_null(share, excess, part, margin):
    bound = 1 + margin
    true_ratio = bound * excess
    ours = share * true_ratio / (share * true_ratio + 1 - share)
    expectation = ours * by_hand(1, 0, share, part * bound, bound) + (1 - ours) * by_hand(
        0, 1, share, part * bound, bound
    )
    assert expectation <= 1 + 1e-9


@given(candidate=counts, baseline=counts, share=st.floats(0.01, 0.99))
def test_more_candidate_events_are_never_better_news(candidate, baseline, share):
    before = series([(share, candidate, 1000, baseline, 1000)], limit=0.05)
    after = series([(share, candidate + 1, 1000, baseline, 1000)], limit=0.05)
    assert evidence.log_worse(after) >= evidence.log_worse(before)
    assert evidence.log_not_inferior(after, 0.5) <= evidence.log_not_inferior(before, 0.5)
    assert evidence.log_below_limit(after) <= evidence.log_below_limit(before)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.01, 0.99), counts, counts), min_size=1, max_size=6))
def test_splitting_a_cell_changes_nothing_for_non_inferiority(cells):
    whole = series([(q, a, 1000, b, 1000) for q, a, b in cells])
    halves = series(
        [
            part
            for q, a, b in cells
            for part in ((q, a // 2, 500, b // 2, 500), (q, a - a // 2, 500, b - b // 2, 500))
        ]
    )
    assert evidence.log_not_inferior(halves, 0.5) == pytest.approx(
        float(evidence.log_not_inferior(whole, 0.5)), abs=1e-9
    )


def test_sticky_users_are_not_multiplied_over_steps():
    cells = [(0.1, 3, 100, 0, 900), (0.2, 3, 200, 0, 800)]
    product = evidence.log_worse(series(cells))
    union = evidence.log_worse(series(cells, is_per_step=True))
    single = evidence.log_worse(series(cells[:1], is_per_step=True))
    assert product > union == single


def test_full_weight_says_nothing_without_a_limit_and_breaks_a_limit_with_one():
    cells = [(0.5, 0, 100, 0, 100), (1.0, 40, 100, 0, 0)]
    assert float(evidence.log_worse(series(cells))) == pytest.approx(0.0)
    assert float(evidence.log_worse(series(cells, limit=0.05))) > math.log(100)


def test_assignment_fires_on_a_wrong_share_and_not_on_a_right_one():
    assert evidence.log_misassigned(series([(0.5, 500, 500, 500, 500)])) < 0
    assert evidence.log_misassigned(series([(0.5, 900, 900, 100, 100)])) > math.log(1e4)
