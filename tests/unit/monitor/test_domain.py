"""What the monitor decides, against values worked out by hand."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import false_discovery_control, ks_2samp, kstwo
from volary_kit.documents import DocumentError, parse_documents, read_documents
from volary_monitor.domain import alerting, policy
from volary_monitor.domain.alerting import Hysteresis, Step, Streaks
from volary_monitor.domain.bins import Reference, binned
from volary_monitor.domain.discovery import adjusted, find
from volary_monitor.domain.distances import (
    distance,
    kolmogorov_smirnov,
    kolmogorov_tail,
    mean_shift,
    population_stability,
)
from volary_monitor.domain.policy import DriftRule, QualityRule
from volary_monitor.domain.quality import area_under_roc, breaches, measure
from volary_monitor.domain.truth import Truth, truth_of
from volary_monitor.domain.windows import MAX_EMPTY, Span, closed, empty, window_of

DAY_US = 86_400_000_000


def reference(edges, counts, mean=0.0, sd=1.0, minimum=-10.0, maximum=10.0) -> Reference:
    return Reference(
        "f", np.array(edges, float), np.array(counts, np.int64), mean, sd, minimum, maximum
    )


def test_value_on_an_edge_is_in_the_bin_below_it():
    found = binned(np.array([-1.0, 0.0, 0.5, 1.0, 1.5]), reference([0, 1], [1, 1, 1]))
    assert found.inside.tolist() == [2, 2, 1]


def test_odd_values_have_bins_of_their_own():
    values = np.array([np.nan, np.inf, -np.inf, -11, 11, 12, 0])
    found = binned(values, reference([0], [1, 1]))
    assert (found.nan, found.positive_infinite, found.negative_infinite) == (1, 1, 1)
    assert (found.below, found.above, found.inside.tolist()) == (1, 2, [1, 0])
    assert (found.finite, found.odd, found.total) == (4, 6, 7)


def test_windows_counted_in_parts_add_up():
    values = np.array([np.nan, -20, 0.2, 0.7, 3, 20, np.inf])
    on = reference([0, 1], [1, 1, 1], mean=0.5)
    whole, parts = binned(values, on), binned(values[:3], on) + binned(values[3:], on)
    assert parts.inside.tolist() == whole.inside.tolist()
    assert (parts.odd, parts.shifted_sum) == (whole.odd, pytest.approx(whole.shifted_sum))


def test_a_million_values_are_counted_vectorised():
    on = reference(np.linspace(-3, 3, 1_024), np.ones(1_025))
    values = np.random.default_rng(7).normal(size=1_000_000)
    began_s = time.process_time()
    assert binned(values, on).total == 1_000_000
    assert time.process_time() - began_s < 1.0


def test_psi_by_hand():
    """Shares 0.25/0.75 against 0.5/0.5, with half a count added to each bin of two."""
    window = binned(np.array([-1.0] * 25 + [1.0] * 75), reference([0], [50, 50]))
    p, q = (25.5 / 101, 75.5 / 101), (50.5 / 101, 50.5 / 101)
    by_hand = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert population_stability(window, reference([0], [50, 50])) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.2685, abs=5e-4)


def test_psi_of_the_same_shares_is_nearly_zero_and_nan_counts():
    on = reference([0], [500, 500])
    same = binned(np.array([-1.0] * 50 + [1.0] * 50), on)
    assert population_stability(same, on) == pytest.approx(0.0, abs=1e-12)
    broken = binned(np.array([-1.0] * 40 + [1.0] * 40 + [np.nan] * 20), on)
    assert population_stability(broken, on) > 1.0


def test_ks_by_hand():
    """Distribution functions 0.25 and 0.5 at the only edge: distance 0.25."""
    on = reference([0], [50, 50])
    window = binned(np.array([-1.0] * 25 + [1.0] * 75), on)
    statistic, p_value = kolmogorov_smirnov(window, on)
    assert statistic == pytest.approx(0.25)
    assert 0.0005 < p_value < 0.01


def test_ks_on_many_edges_is_that_of_the_samples():
    generator = np.random.default_rng(1)
    training, live = generator.normal(size=4_000), generator.normal(0.15, size=1_500)
    edges = np.unique(np.quantile(training, np.arange(1, 1_024) / 1_024))
    counts = np.bincount(np.searchsorted(edges, training), minlength=len(edges) + 1)
    on = reference(edges, counts, 0.0, 1.0, training.min(), training.max())
    statistic, p_value = kolmogorov_smirnov(binned(live, on), on)
    exact = ks_2samp(training, live, method="asymp")
    assert statistic == pytest.approx(exact.statistic, abs=1.5e-3)
    assert p_value == pytest.approx(exact.pvalue, rel=0.2)


@pytest.mark.parametrize("effective", [50, 500, 50_000])
def test_tail_is_the_exact_one_of_the_sample_size(effective: int):
    """Within 4 % where a p-value decides: from 0.2 down to 1e-6."""
    for p_value in (0.2, 0.05, 0.01, 1e-3, 1e-6):
        statistic = kstwo.isf(p_value, effective)
        rel = 0.04 if p_value > 1e-4 or effective > 100 else 0.5
        assert kolmogorov_tail(statistic, effective) == pytest.approx(p_value, rel=rel)
    assert kolmogorov_tail(0.0, effective) == 1.0
    assert kolmogorov_tail(1.0, effective) < 1e-20


def test_ks_puts_infinities_outermost_and_leaves_nan_out():
    on = reference([0], [50, 50])
    window = binned(np.array([-np.inf] * 50 + [1.0] * 50 + [np.nan] * 100), on)
    assert kolmogorov_smirnov(window, on)[0] == pytest.approx(0.5)


def test_mean_shift_is_in_reference_deviations():
    on = reference([0], [1, 1], mean=10, sd=4, minimum=0, maximum=20)
    assert mean_shift(binned(np.array([11.0, 13.0, np.nan]), on), on) == pytest.approx(0.5)
    constant = reference([], [5], mean=1, sd=0, minimum=1, maximum=1)
    assert mean_shift(binned(np.array([1.0, 1.0]), constant), constant) == 0
    assert mean_shift(binned(np.array([2.0]), constant), constant) == np.inf


def test_empty_window_is_at_distance_zero():
    on = reference([0], [5, 5])
    found = distance(binned(np.array([]), on), on)
    assert (found.values, found.psi, found.ks, found.p_value, found.mean_shift_sd) == (
        0,
        0,
        0,
        1,
        0,
    )


def test_adjusted_p_values_by_hand_and_by_scipy():
    """Benjamini and Hochberg: 0.01*4/1, 0.02*4/2, 0.03*4/3, 0.5*4/4, then rising."""
    assert adjusted([0.03, 0.01, 0.5, 0.02]).tolist() == pytest.approx([0.04, 0.04, 0.5, 0.04])
    p_values = np.random.default_rng(3).uniform(size=50)
    assert adjusted(p_values.tolist()) == pytest.approx(false_discovery_control(p_values))


def drifted(shift: float, rows: int, rule: DriftRule) -> bool:
    generator = np.random.default_rng(5)
    training = generator.normal(size=20_000)
    edges = np.quantile(training, np.arange(1, 32) / 32)
    counts = np.bincount(np.searchsorted(edges, training), minlength=32)
    on = reference(edges, counts, training.mean(), training.std(), training.min(), training.max())
    live = generator.normal(shift, size=rows)
    return find([distance(binned(live, on), on)], rule)[0].has_drifted


def test_tiny_certain_shift_never_drifts_and_large_one_does():
    rule = DriftRule(min_shift_sd=0.2, min_psi=0.2)
    assert not drifted(0.03, 300_000, rule)  # p is about 1e-20
    assert drifted(0.4, 2_000, rule)
    assert not drifted(0.4, 4, rule)  # an effect without evidence


def test_clean_windows_rarely_alarm_whatever_the_number_of_features():
    """Uncorrected, 50 features alarm in nearly every window; the effect is switched off here."""
    generator = np.random.default_rng(11)
    rule = DriftRule(false_discovery_rate=0.05, min_shift_sd=1e-9, min_psi=1e-9)
    edges = np.linspace(0.05, 0.95, 19)
    on = reference(edges, [5_000] * 20, 0.5, 0.2887, 0.0, 1.0)
    alarms = uncorrected = 0
    for _ in range(100):
        found = [distance(binned(generator.uniform(size=500), on), on) for _feature in range(50)]
        alarms += any(each.has_drifted for each in find(found, rule))
        uncorrected += any(each.p_value <= 0.05 for each in found)
    assert alarms <= 10
    assert uncorrected >= 50


def test_findings_come_largest_effect_first():
    on = reference([0], [500, 500], mean=0, sd=1)
    far, near = binned(np.full(100, 3.0), on), binned(np.array([-1.0, 1.0] * 50), on)
    found = find([distance(near, on), distance(far, on)], DriftRule())
    assert [each.distance.mean_shift_sd for each in found] == [3.0, 0.0]


def test_quality_by_hand():
    scores, labels = np.array([0.9, 0.8, 0.3, 0.6]), np.array([1.0, 0.0, 0.0, 1.0])
    found = measure(5, scores, labels, 0.5)
    assert (found.predictions, found.labelled, found.coverage) == (5, 4, 0.8)
    assert found.accuracy == 0.75
    assert found.auc == 0.75  # of the four pairs only (0.6, 0.8) is the wrong way round
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.09 + 0.16) / 4)
    by_hand = -(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.6)) / 4
    assert found.log_loss == pytest.approx(by_hand)
    assert (found.positive_share, found.mean_score) == (0.5, pytest.approx(0.65))


def test_area_counts_ties_half_and_one_class_is_one_half():
    assert area_under_roc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert area_under_roc(np.array([0.1, 0.9]), np.array([True, True])) == 0.5


def test_nothing_labelled_measures_nothing():
    found = measure(7, np.array([]), np.array([]), 0.5)
    assert (found.coverage, found.labelled, found.auc) == (0.0, 0, 0.0)


def test_breach_needs_maturity():
    scores, labels = np.full(300, 0.9), np.zeros(300)
    rule = QualityRule(min_coverage=0.8, max_log_loss_increase=0.1, min_accuracy=0.6)
    registered = {"log_loss": 0.5}
    (loss, accuracy) = breaches(measure(310, scores, labels, 0.5), registered, rule)
    assert (loss.metric, loss.bound) == ("log_loss", pytest.approx(0.6))
    assert (accuracy.metric, accuracy.value) == ("accuracy", 0.0)
    assert breaches(measure(1_000, scores, labels, 0.5), registered, rule) == []
    assert [b.metric for b in breaches(measure(310, scores, labels, 0.5), {}, rule)] == ["accuracy"]


def test_windows_tile_event_time_and_close_after_lateness():
    assert window_of(0, 10) == Span(0, 10)
    assert window_of(9, 10) == Span(0, 10)
    assert window_of(-1, 10) == Span(-10, 0)
    assert closed([20, 0, 10], reach_us=19, length_us=10) == [Span(0, 10)]
    assert closed([20, 0, 10], reach_us=20, length_us=10) == [
        Span(0, 10),
        Span(10, 20),
    ]


def test_empty_windows_lie_between_what_was_seen_and_how_far_time_has_come():
    assert empty([10, 40], None, 65, 10) == [Span(20, 30), Span(30, 40), Span(50, 60)]
    assert empty([], 35, 65, 10) == [Span(40, 50), Span(50, 60)]
    assert empty([], None, 65, 10) == []
    far = empty([0], None, 10**9, 10)
    assert len(far) == MAX_EMPTY
    assert far[-1] == Span(10**9 - 10, 10**9)


def test_streak_is_of_the_newest_windows():
    assert alerting.streaks([]) == Streaks(0, 0)
    assert alerting.streaks([True, True, False, True]) == Streaks(2, 0)
    assert alerting.streaks([False, True]) == Streaks(0, 1)


@pytest.mark.parametrize(
    ("streak", "is_firing", "is_renewable", "expected"),
    [
        (Streaks(1, 0), False, False, Step.NOTHING),
        (Streaks(2, 0), False, False, Step.RAISE),
        (Streaks(0, 9), False, True, Step.NOTHING),
        (Streaks(3, 0), True, False, Step.KEEP),
        (Streaks(3, 0), True, True, Step.RENEW),
        (Streaks(0, 2), True, True, Step.NOTHING),
        (Streaks(0, 3), True, True, Step.RESOLVE),
    ],
)
def test_alert_steps_with_hysteresis(streak, is_firing, is_renewable, expected):
    found = alerting.step(streak, Hysteresis(2, 3), is_firing=is_firing, is_renewable=is_renewable)
    assert found is expected


def test_retrain_is_asked_for_once_a_cooldown():
    assert alerting.may_retrain(None, 0, 10)
    assert not alerting.may_retrain(5, 14, 10)
    assert alerting.may_retrain(5, 15, 10)


TRUTH = policy.Truth(source="s", subject_column="id", label_column="delay", label_threshold=15)


def test_truth_is_a_number_above_its_threshold():
    assert truth_of(TRUTH, {"id": "a", "delay": 15.5}, 7) == Truth("a", 1.0, 7)
    assert truth_of(TRUTH, {"id": "a", "delay": 15}, 7) == Truth("a", 0.0, 7)
    bare = TRUTH.model_copy(update={"label_threshold": None})
    assert truth_of(bare, {"id": 3, "delay": -2.5}, 7) == Truth("3", -2.5, 7)
    assert truth_of(bare, {"id": "a", "delay": True}, 7) == Truth("a", 1.0, 7)


@pytest.mark.parametrize("delay", [None, "late", math.nan, math.inf])
def test_record_without_a_usable_number_is_no_truth(delay):
    assert truth_of(TRUTH, {"id": "a", "delay": delay}, 7) is None
    assert truth_of(TRUTH, {"delay": 1.0}, 7) is None


DOCUMENT = """\
kind: Monitor
name: m
owner: a
on_call: b
spec:
  model: m
  truth: {source: s, subject_column: id, label_column: delay, give_up_after: 2d}
  window: {length: 3d}
  alerts:
    drift: {severity: warning, retrain: true}
"""


def test_policy_is_read_with_its_defaults():
    found = parse_documents(DOCUMENT, "x")[0].check(policy.Monitor).spec
    assert found.window.length == 3 * DAY_US
    assert found.truth.give_up_after == 2 * DAY_US
    assert (found.alerts.drift.retrain, found.alerts.quality.severity) == (True, "critical")


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("3d", "3 days", "spec.window.length"),
        ("3d", "0d", "spec.window.length"),
        ("warning", "loud", "spec.alerts.drift.severity"),
        ("on_call: b\n", "", "on_call"),
        ("model: m", "model: m\n  modle: n", "spec.modle"),
    ],
)
def test_wrong_policy_is_refused_where_it_is_wrong(old, new, path):
    with pytest.raises(DocumentError) as caught:
        parse_documents(DOCUMENT.replace(old, new), "x")[0].check(policy.Monitor)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_example_policies_are_valid():
    examples = sorted((Path(__file__).parents[3] / "examples").glob("*/monitor.yaml"))
    assert examples
    for path in examples:
        for document in read_documents(path):
            document.check(policy.Monitor)
