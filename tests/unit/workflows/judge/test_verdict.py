"""The judge as a whole: from inputs to verdicts, reasons and what is missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from volary_workflows.judge.inputs import LATENCY_QUANTILE, Cell, Counts, Guard, Inputs
from volary_workflows.judge.series import freeze_thresholds
from volary_workflows.judge.verdict import VERSION, judge, recompute

EDGES_US = [1_000, 2_000, 5_000, 10_000, 50_000, 250_000]


def cell(share, ours, theirs, step="canary", generation=2, *, shadow=False):
    """Make a cell of (calls, errors) pairs."""
    return Cell(
        step, generation, share, Counts(*ours, [0] * 7), Counts(*theirs, [0] * 7), shadow=shadow
    )


def latency_cell(share, ours, theirs, generation=2):
    return Cell(
        "canary",
        generation,
        share,
        Counts(calls=sum(ours), latency=list(ours)),
        Counts(calls=sum(theirs), latency=list(theirs)),
    )


def test_a_bad_candidate_fails_with_its_rates_in_words():
    verdict = judge(Inputs([Guard()], [cell(0.1, (200, 40), (1800, 18))]))
    assert verdict.verdict == "FAIL"
    assert verdict.reason_codes == ["CANDIDATE_WORSE"]
    assert verdict.evidence >= 1
    assert "20.000% of 200 candidate calls against 1.000% of 1,800" in verdict.reasons[1]
    assert verdict.judge_version == VERSION


def test_a_clean_candidate_passes_on_its_ceiling_alone():
    verdict = judge(Inputs([Guard()], [cell(0.1, (200, 0), (1800, 0))]))
    assert (verdict.verdict, verdict.reason_codes) == ("PASS", ["GOOD_ENOUGH"])


def test_too_few_calls_are_inconclusive_and_the_missing_ones_suffice():
    guard = Guard()
    verdict = judge(Inputs([guard], [cell(0.1, (40, 0), (360, 0))]))
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.reason_codes == ["NEEDS_MORE_CALLS"]
    calls = 40 + verdict.more_calls
    assert judge(Inputs([guard], [cell(0.1, (calls, 0), (9 * calls, 0))])).verdict == "PASS"
    fewer = calls - 3
    assert judge(Inputs([guard], [cell(0.1, (fewer, 0), (9 * fewer, 0))])).verdict != "PASS"


def test_equal_noisy_rates_pass_by_non_inferiority_where_the_ceiling_cannot():
    inputs = Inputs([Guard(ceiling=0.05)], [cell(0.5, (10_000, 1_000), (10_000, 1_000))])
    assert judge(inputs).verdict == "PASS"


def test_a_candidate_beyond_margin_and_ceiling_can_never_pass():
    verdict = judge(Inputs([Guard(alpha=1e-9)], [cell(0.5, (60, 12), (60, 6))]))
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.reason_codes == ["CANNOT_PASS"]
    assert verdict.more_calls == -1


def test_lost_records_forbid_pass_but_not_fail():
    clean = cell(0.1, (500, 0), (4500, 0))
    assert judge(Inputs([Guard()], [clean])).verdict == "PASS"
    lossy = judge(Inputs([Guard()], [replace(clean, complete=False)]))
    assert lossy.verdict == "INCONCLUSIVE"
    assert "INCOMPLETE_EVIDENCE" in lossy.reason_codes
    bad = replace(cell(0.1, (500, 100), (4500, 45)), complete=False)
    assert judge(Inputs([Guard()], [bad])).verdict == "FAIL"


def test_an_earlier_step_with_lost_records_neither_passes_nor_stands_in_the_way():
    lossy = replace(cell(0.1, (500, 0), (4500, 0)), complete=False)
    few = cell(0.5, (20, 0), (20, 0), step="50", generation=3)
    assert judge(Inputs([Guard()], [lossy, few])).verdict == "INCONCLUSIVE"
    many = cell(0.5, (500, 0), (500, 0), step="50", generation=3)
    assert judge(Inputs([Guard()], [lossy, many])).verdict == "PASS"


def test_a_certain_but_tiny_regression_waits_for_a_person():
    tiny = [cell(0.5, (1_000_000, 2_000), (1_000_000, 1_000))]
    inputs = Inputs([Guard(min_effect=0.005)], tiny)
    verdict = judge(inputs)
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.reason_codes == ["TINY_REGRESSION"]
    assert verdict.evidence > 1
    accepted = Inputs([Guard(min_effect=0.005)], tiny, acknowledged=["TINY_REGRESSION"])
    assert judge(accepted).verdict == "PASS"
    assert judge(Inputs([Guard(min_effect=0.0005)], tiny)).verdict == "FAIL"


def test_shadow_errors_count_against_the_candidate():
    shadow = cell(1.0, (300, 60), (300, 3), step="shadow", generation=1, shadow=True)
    assert judge(Inputs([Guard()], [shadow])).verdict == "FAIL"


def test_a_regression_that_begins_late_is_not_hidden_by_healthy_steps():
    healthy = cell(0.5, (20_000, 200), (20_000, 200), step="50", generation=3)
    broken = cell(0.5, (300, 60), (300, 3), step="60", generation=4)
    assert judge(Inputs([Guard()], [healthy])).verdict == "PASS"
    assert judge(Inputs([Guard()], [healthy, broken])).verdict == "FAIL"


def test_a_bake_at_full_weight_is_held_to_the_ceiling():
    healthy = cell(0.5, (2_000, 2), (2_000, 2), step="50", generation=3)
    bake = cell(1.0, (400, 100), (0, 0), step="bake", generation=4)
    assert judge(Inputs([Guard()], [healthy, bake])).verdict == "FAIL"


def test_slow_candidate_fails_on_frozen_thresholds():
    guard = Guard("latency", LATENCY_QUANTILE, min_effect=0.02)
    usual = [500, 300, 150, 40, 9, 1, 0]
    slow = [10, 20, 40, 60, 300, 60, 10]
    thresholds = freeze_thresholds(EDGES_US, usual, (0.5, 0.95, 0.99))
    assert thresholds == [1_000, 5_000, 10_000]
    bad = Inputs([guard], [latency_cell(0.5, slow, usual)], EDGES_US, thresholds)
    assert judge(bad).verdict == "FAIL"
    same = Inputs([guard], [latency_cell(0.5, usual, usual)], EDGES_US, thresholds)
    assert judge(same).verdict != "FAIL"


def test_latency_can_pass_on_a_declared_limit():
    guard = Guard("latency", LATENCY_QUANTILE, ceiling=0.05, limit_us=240_000)
    usual = [500, 300, 150, 40, 9, 1, 0]
    same = [latency_cell(0.5, usual, usual)]
    assert judge(Inputs([guard], same, EDGES_US, [1_000])).verdict == "PASS"


def test_thresholds_are_frozen_only_on_enough_traffic():
    assert freeze_thresholds(EDGES_US, [0, 50, 0, 0, 0, 0, 0], (0.5,)) == []
    assert freeze_thresholds(EDGES_US, [0, 0, 0, 0, 0, 0, 300], (0.5, 0.99)) == [250_000]


def test_wrong_shares_cannot_pass():
    verdict = judge(Inputs([Guard()], [cell(0.1, (1_000, 0), (1_000, 0))]))
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.reason_codes == ["SHARE_MISMATCH"]


def test_sticky_traffic_counts_users_not_their_calls():
    # one user of the candidate fails 300 times: 1 user of 200 against 18 of 1,800
    ours = Counts(calls=2_000, errors=300, users=200, users_with_error=1)
    theirs = Counts(calls=18_000, errors=180, users=1_800, users_with_error=18)
    cells = [Cell("canary", 2, 0.1, ours, theirs)]
    assert judge(Inputs([Guard()], cells)).verdict == "FAIL"
    assert judge(Inputs([Guard()], cells, sticky=True)).verdict != "FAIL"


def test_no_calls_is_inconclusive():
    assert judge(Inputs([Guard()], [])).reason_codes == ["NO_CALLS"]


def test_alphas_of_guards_add_up():
    # evidence 10^1.5 alone does not fail one guard of 1 %, and does not fail two that halve it
    cells = [cell(0.5, (100, 8), (100, 1))]
    one = judge(Inputs([Guard(alpha=0.01)], cells))
    two = judge(Inputs([Guard(alpha=0.005), Guard("again", alpha=0.005)], cells))
    assert two.evidence == pytest.approx(one.evidence)


def test_anyone_can_recompute_a_stored_verdict():
    inputs = Inputs(
        [Guard(), Guard("latency", LATENCY_QUANTILE)],
        [latency_cell(0.3, [50, 30, 10, 5, 3, 1, 1], [90, 60, 20, 9, 5, 1, 1])],
        EDGES_US,
        [2_000],
    )
    verdict = judge(inputs)
    stored = json.loads(json.dumps(inputs.to_document(), allow_nan=False))
    assert recompute(stored).to_document() == verdict.to_document()
    json.dumps(verdict.to_document(), allow_nan=False)
    assert math.isfinite(verdict.evidence)
