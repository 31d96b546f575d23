"""Paired outcomes, bounded scores and their confidence sequences, against hand and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from volary_workflows.judge.inputs import Cell, Counts, Guard, PairedScores, Scores
from volary_workflows.judge.means import (
    PENALTIES,
    STAKES,
    UNIFORM,
    OutcomeComparison,
    ScoreComparison,
    compare_arms,
    interval,
)
from volary_workflows.judge.scores import pair_scores, sum_scores

NEEDED = math.log(100)


def upper(hits, runs):
    """Return the exact 99 % upper bound on a probability (Clopper and Pearson, 1934)."""
    return stats.beta.ppf(0.99, hits + 1, runs - hits)


def score_cells(scores):
    """Make one comparison out of a list of scores."""
    values = np.asarray(scores, dtype=float)
    sums = [len(values), values.sum(), (values**2).sum()]
    return ScoreComparison(*[np.array([each]) for each in sums], np.ones(1))


def test_mcnemar_is_the_likelihood_ratio_of_the_discordant_pairs():
    # a stake k is the alternative p = (1 + k) / 2 against 1/2; concordant pairs say nothing
    likelihoods = stats.binom.pmf(9, 12, (1 + STAKES) / 2) / stats.binom.pmf(9, 12, 0.5)
    for same in (0, 1_000):
        found = OutcomeComparison(worse=9, better=3, same=same).log_above(0.0)
        assert found == pytest.approx(math.log(likelihoods.mean()))


def test_one_bounded_score_by_hand():
    found = score_cells([0.5]).log_beyond(0.1)
    each = np.exp(STAKES * 0.4 - PENALTIES * 0.25)
    assert found == pytest.approx(math.log(np.dot(each, UNIFORM)))
    assert PENALTIES[-1] == pytest.approx(-math.log(0.1) - 0.9)


@given(
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    margin=st.floats(0.0, 0.5),
)
def test_a_pair_has_expectation_at_most_one_under_both_nulls(rates, margin):
    worse, better = rates[0] * 0.5, rates[1] * 0.5
    mean = worse - better
    outcomes = [OutcomeComparison(1, 0, 0), OutcomeComparison(0, 1, 0), OutcomeComparison(0, 0, 1)]
    chances = [worse, better, 1 - worse - better]

    def expectation(test):
        return sum(p * math.exp(test(o)) for p, o in zip(chances, outcomes, strict=True))

    bound = max(margin, mean)
    assert expectation(lambda o: o.log_beyond(bound)) <= 1 + 1e-9
    floor = min(mean, 0.99)
    assert expectation(lambda o: o.log_below(floor)) <= 1 + 1e-9


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=6),
    st.floats(0.0, 0.3),
)
def test_a_bounded_score_has_expectation_at_most_one_under_both_nulls(values, slack):
    mean = float(np.mean(values))
    above = np.mean([math.exp(score_cells([v]).log_beyond(min(mean + slack, 1))) for v in values])
    below = np.mean([math.exp(score_cells([v]).log_below(max(mean - slack, -1))) for v in values])
    assert above <= 1 + 1e-9
    assert below <= 1 + 1e-9


def test_evidence_begun_at_a_later_cell_is_not_hidden():
    quiet, loud = [1_000.0, -60.0, 200.0, 1.0], [300.0, 60.0, 60.0, 1.0]
    both = ScoreComparison(*np.array([quiet, loud]).T)
    assert both.log_above(0.0) > NEEDED > both.log_beyond(0.0)
    union = ScoreComparison(*np.array([quiet, loud]).T, is_per_step=True)
    assert NEEDED < union.log_above(0.0) < both.log_above(0.0)


def crossed_of_counts(draws, bound, *, above):
    """Return which runs of {-1, 0, 1} ever reach the evidence, at any single pair."""
    plus, minus = (draws > 0).cumsum(axis=1), (draws < 0).cumsum(axis=1)
    zero = np.arange(1, draws.shape[1] + 1) - plus - minus
    stakes = STAKES / (1 + bound) if above else -STAKES / (1 - bound)
    logs = (
        plus * np.log1p(k * (1 - bound))
        + minus * np.log1p(-k * (1 + bound))
        + zero * np.log1p(-k * bound)
        for k in stakes
    )
    return has_crossed(logs)


def crossed_of_scores(draws, bound, sign=1.0):
    """Return which runs of bounded scores ever reach the evidence, at any single score."""
    excess, squares = (sign * (draws - bound)).cumsum(axis=1), (draws**2).cumsum(axis=1)
    return has_crossed(k * excess - p * squares for k, p in zip(STAKES, PENALTIES, strict=True))


def has_crossed(logs):
    """Return which runs the mean of the stakes' e-values ever takes to 100."""
    return (sum(np.exp(each) for each in logs) >= 100 * len(STAKES)).any(axis=1)


def test_the_vectorised_forms_are_those_that_judge():
    draws = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.05, 0.8, 0.15], size=(1, 300))
    crossed = crossed_of_counts(draws, 0.02, above=True)[0]
    found = [
        OutcomeComparison((d > 0).sum(), (d < 0).sum(), (d == 0).sum()).log_above(0.02) >= NEEDED
        for d in (draws[0, :n] for n in range(1, 301))
    ]
    assert crossed == any(found)
    crossed = crossed_of_scores(draws, 0.02)[0]
    assert crossed == any(
        score_cells(draws[0, :n]).log_beyond(0.02) >= NEEDED for n in range(1, 301)
    )


@pytest.mark.parametrize("discordant", [0.02, 0.2])
def test_looking_after_every_label_an_equal_candidate_fails_in_at_most_alpha(discordant):
    generator = np.random.default_rng(17)
    chances = [discordant / 2, 1 - discordant, discordant / 2]
    draws = generator.choice([-1.0, 0.0, 1.0], p=chances, size=(2_000, 1_500))
    assert upper(crossed_of_counts(draws, 0.0, above=True).sum(), len(draws)) <= 0.01
    assert upper(crossed_of_scores(draws, 0.0).sum(), len(draws)) <= 0.01


def test_a_candidate_worse_by_the_margin_passes_in_at_most_alpha():
    generator = np.random.default_rng(19)
    draws = generator.choice([-1.0, 0.0, 1.0], p=[0.04, 0.90, 0.06], size=(3_000, 2_000))
    assert upper(crossed_of_counts(draws, 0.02, above=False).sum(), len(draws)) <= 0.01
    assert upper(crossed_of_scores(draws, 0.02, sign=-1.0).sum(), len(draws)) <= 0.01


def test_five_points_are_seen_within_400_labels_two_within_2500():
    generator = np.random.default_rng(23)

    def median(points, size):
        chances = [0.025, 0.95 - points, 0.025 + points]
        draws = generator.choice([-1.0, 0.0, 1.0], p=chances, size=(200, size))
        plus, minus = (draws > 0).cumsum(axis=1), (draws < 0).cumsum(axis=1)
        logs = [plus * math.log1p(k) + minus * math.log1p(-k) for k in STAKES]
        hit = np.exp(np.stack(logs)).mean(axis=0) >= 100
        assert hit.any(axis=1).mean() > 0.9
        return np.median(np.where(hit.any(axis=1), hit.argmax(axis=1), size))

    assert median(0.05, 4_000) <= 500
    assert median(0.02, 10_000) <= 3_000


@settings(max_examples=30, deadline=None)
@given(
    worse=st.integers(0, 400), better=st.integers(0, 400), same=st.integers(0, 4_000),
    alpha=st.sampled_from([0.001, 0.01, 0.1]),
)  # fmt: skip
def test_the_interval_is_the_inversion_of_the_tests(worse, better, same, alpha):
    comparison = OutcomeComparison(worse, better, same)
    low, high = interval(comparison, alpha)
    assert -1 <= low <= comparison.effect() <= high <= 1
    needed = -math.log(alpha)
    if low > -1:
        assert comparison.log_beyond(low - 1e-4 * (1 + low)) > needed - 0.05
        assert comparison.log_beyond(low + 1e-5) < needed
    if high < 1:
        assert comparison.log_below(high - 1e-5) < needed
        assert comparison.log_below(high + 1e-4 * (1 - high)) > needed - 0.05


def test_the_confidence_sequence_covers_at_all_times():
    generator = np.random.default_rng(29)
    draws = generator.beta(2, 5, size=(2_000, 1_500)) * 2 - 1
    mean = 2 * 2 / 7 - 1
    missed = crossed_of_scores(draws, mean) | crossed_of_scores(draws, mean, sign=-1.0)
    assert upper(missed.sum(), len(draws)) <= 0.02


def arms(share, ours, theirs):
    """Make a cell of served scores."""
    candidate = Counts(calls=len(ours), scores={"revenue": sum_scores(ours)})
    baseline = Counts(calls=len(theirs), scores={"revenue": sum_scores(theirs)})
    return Cell("canary", 2, share, candidate, baseline)


BUSINESS = Guard("revenue", "business", margin=0.02)


def test_split_scores_are_those_of_the_definition():
    generator = np.random.default_rng(31)
    ours, theirs = generator.random(40), generator.random(160)
    found = compare_arms(BUSINESS, [arms(0.2, ours, theirs)], 0.4, is_sticky=False)
    # loss = 1 - score, center 1 - 0.4: (A - q)(y - c) with y - c = 0.4 - score
    scores = np.concatenate([0.8 * (0.4 - ours), -0.2 * (0.4 - theirs)])
    assert found.counts[0] == 200
    assert found.totals[0] == pytest.approx(scores.sum())
    assert found.squares[0] == pytest.approx((scores**2).sum())
    assert found.scales[0] == pytest.approx(0.16)
    losses = compare_arms(
        Guard("revenue", "business", higher_is_better=False),
        [arms(0.2, 1 - ours, 1 - theirs)], 0.6, is_sticky=False,
    )  # fmt: skip
    assert losses.totals[0] == pytest.approx(found.totals[0])


def test_the_effect_of_a_split_is_unbiased_while_the_hour_moves_both_versions():
    generator = np.random.default_rng(37)
    effects = []
    for _ in range(200):
        cells = []
        for share, level in ((0.05, 0.3), (0.5, 0.6)):
            is_ours = generator.random(2_000) < share
            scores = (generator.random(2_000) < level - 0.05 * is_ours).astype(float)
            cells.append(arms(share, scores[is_ours], scores[~is_ours]))
        effects.append(compare_arms(BUSINESS, cells, 0.45, is_sticky=False).effect())
    # the standard deviation of one is 0.02: the mean of 200 within 0.006 is four of its own
    assert np.mean(effects) == pytest.approx(0.05, abs=0.006)


def test_an_equal_split_fails_in_at_most_alpha_and_a_bad_one_is_seen():
    generator = np.random.default_rng(41)
    share, calls = 0.2, 2_000
    is_ours = generator.random((1_500, calls)) < share

    def crossed(drop):
        losses = (generator.random((1_500, calls)) < 0.3 + drop * is_ours).astype(float)
        return crossed_of_scores((is_ours - share) * (losses - 0.25), 0.0)

    assert upper(crossed(0.0).sum(), 1_500) <= 0.01
    assert crossed(0.2).mean() > 0.9


def test_no_center_breaks_the_bound_only_the_power():
    generator = np.random.default_rng(43)
    is_ours = generator.random((1_500, 2_000)) < 0.3
    losses = (generator.random((1_500, 2_000)) < 0.1).astype(float)
    for center in (0.0, 0.1, 1.0):
        hits = crossed_of_scores((is_ours - 0.3) * (losses - center), 0.0).sum()
        assert upper(hits, 1_500) <= 0.01


def test_stored_pairs_are_what_the_fold_makes_of_losses():
    pairs = pair_scores("error", [(1.0, 0.0), (0.25, 0.5), (0.0, 0.0)])
    assert pairs == PairedScores("error", 3, 0.75, 1.0625)
    comparison = ScoreComparison.of(pairs)
    assert comparison.effect() == pytest.approx(0.25)
    assert comparison.log_beyond(0.0) == pytest.approx(
        score_cells([1.0, -0.25, 0.0]).log_beyond(0.0)
    )
    with pytest.raises(ValueError, match="outside the declared range"):
        sum_scores([0.5, 1.5])
    assert sum_scores([0.5, 0.5]) == Scores(2, 1.0, 0.5)
