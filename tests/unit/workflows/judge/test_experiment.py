"""Experiments: the interval holds at all times, and a broken one says so before it misleads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from volary_workflows.judge.experiment import (
    ArmCell,
    ArmShare,
    ExperimentInputs,
    judge_experiment,
    recompute,
)
from volary_workflows.judge.inputs import BUSINESS, Cell, Counts, Guard, Scores
from volary_workflows.judge.means import compare_arms
from volary_workflows.judge.verdict import OtherJudge

ARMS = [ArmShare("today", 1, 0.5), ArmShare("bold", 2, 0.5)]


def users(n: int, errors: int = 0) -> Counts:
    return Counts(n, errors, users=n, users_with_error=errors, users_first_error=errors)


def scores(n: int, mean: float, spread: float = 0.1) -> Scores:
    return Scores(n, n * mean, n * (mean**2 + spread**2))


def inputs(today: Scores, bold: Scores, **more) -> ExperimentInputs:
    given = ExperimentInputs(
        arms=ARMS,
        control="today",
        metric="basket_value",
        cells=[ArmCell(8, {"today": users(20_000), "bold": users(20_000)})],
        scores={"today": today, "bold": bold},
        upper=100.0,
        center=0.3,
        min_effect=1.0,
    )
    return replace(given, **more)


@pytest.mark.parametrize(
    ("bold", "higher", "verdict", "winner"),
    [
        (0.33, True, "WINNER", "bold"),
        (0.33, False, "NO_WINNER", ""),
        (0.27, True, "NO_WINNER", ""),
        (0.27, False, "WINNER", "bold"),
        (0.3001, True, "NO_WINNER", ""),
    ],
)
def test_arms_are_told_apart(bold, higher, verdict, winner):
    given = inputs(scores(20_000, 0.3), scores(20_000, bold), higher_is_better=higher)
    found = judge_experiment(given)
    assert (found.verdict, found.winner) == (verdict, winner)
    arm = found.findings[1]
    assert arm.low < (bold - 0.3) * 100 < arm.high
    assert arm.difference == pytest.approx((bold - 0.3) * 100, abs=0.05)


def test_too_little_is_undecided_and_says_how_much_more():
    cells = [ArmCell(8, {"today": users(300), "bold": users(300)})]
    found = judge_experiment(inputs(scores(300, 0.3), scores(300, 0.33), cells=cells))
    assert (found.verdict, found.reason_codes) == ("UNDECIDED", ["UNDECIDED"])
    more = found.findings[1].more_units
    assert 600 < more < 20_000
    enough = 300 + more // 2
    cells = [ArmCell(8, {"today": users(enough), "bold": users(enough)})]
    later = judge_experiment(inputs(scores(enough, 0.3), scores(enough, 0.33), cells=cells))
    assert later.verdict == "WINNER"


def test_without_outcomes_nothing_is_known():
    found = judge_experiment(inputs(Scores(), Scores()))
    assert (found.verdict, found.reason_codes) == ("UNDECIDED", ["NO_OUTCOMES"])
    assert (found.findings[1].low, found.findings[1].high) == (-100.0, 100.0)


def test_the_best_of_several_wins_and_all_intervals_are_wider():
    arms = [ArmShare("today", 1, 0.4), ArmShare("bold", 2, 0.4), ArmShare("wild", 3, 0.2)]
    sizes = {"today": 16_000, "bold": 16_000, "wild": 8_000}
    means = {"today": 0.3, "bold": 0.34, "wild": 0.38}
    given = inputs(
        Scores(),
        Scores(),
        arms=arms,
        cells=[ArmCell(8, {name: users(n) for name, n in sizes.items()})],
    )
    given = replace(given, scores={n: scores(size, means[n]) for n, size in sizes.items()})
    found = judge_experiment(given)
    assert (found.verdict, found.winner) == ("WINNER", "wild")
    alone = judge_experiment(inputs(scores(16_000, 0.3), scores(16_000, 0.34)))
    widths = [f.high - f.low for f in (found.findings[1], alone.findings[1])]
    assert widths[0] > widths[1]


def test_units_in_other_shares_void_it():
    cells = [ArmCell(8, {"today": users(20_000), "bold": users(18_000)})]
    found = judge_experiment(inputs(scores(9_000, 0.3), scores(9_000, 0.4), cells=cells))
    assert (found.verdict, found.winner) == ("INVALID", "")
    assert found.reason_codes == ["SAMPLE_RATIO_MISMATCH"]
    assert "18,000 (47.37% for 50.00%)" in found.reasons[0]


def test_outcomes_that_come_of_one_arm_more_often_void_it():
    found = judge_experiment(inputs(scores(9_000, 0.3), scores(7_500, 0.4)))
    assert (found.verdict, found.reason_codes) == ("INVALID", ["OUTCOMES_DEPEND_ON_ARM"])


def test_a_failing_arm_is_harmful_however_good_its_metric():
    cells = [ArmCell(8, {"today": users(2_000, 20), "bold": users(2_000, 120)})]
    found = judge_experiment(inputs(scores(900, 0.3), scores(900, 0.9), cells=cells))
    assert (found.verdict, found.reason_codes) == ("HARMFUL", ["ARM_FAILS"])
    assert found.reasons[0].startswith("bold")


def test_sticky_units_of_a_second_generation_are_the_same_units():
    """Multiplied, a chance deviation that is seen twice would count twice."""
    cells = [ArmCell(g, {"today": users(5_000), "bold": users(4_700)}) for g in (8, 9, 10, 11)]
    sticky = inputs(Scores(), Scores(), cells=cells)
    assert judge_experiment(sticky).verdict == "UNDECIDED"
    assert judge_experiment(sticky).findings[0].units == 5_000
    drawn = judge_experiment(replace(sticky, is_sticky=False))
    assert (drawn.verdict, drawn.findings[0].units) == ("INVALID", 20_000)


def test_lost_records_are_named():
    cells = [ArmCell(8, {"today": users(300), "bold": users(300)}, complete=False)]
    found = judge_experiment(inputs(scores(300, 0.3), scores(300, 0.33), cells=cells))
    assert "INCOMPLETE_RECORDS" in found.reason_codes


@pytest.mark.parametrize("ours", [0.33, 0.3, 0.9])
def test_stored_inputs_give_the_verdict_again(ours):
    given = inputs(scores(9_000, 0.3), scores(8_990, ours))
    stored = MessageToDict(ParseDict(given.to_document(), Struct()))
    assert recompute(stored) == judge_experiment(given)
    with pytest.raises(OtherJudge):
        recompute(stored, "experiment/0")


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_interval_covers_at_every_look(share):
    """Users of unequal size, an effect of -2 points, 25 looks: every end holds in nearly all."""
    effect, runs, looks, n, level = -0.02, 120, 25, 2_500, 0.025
    generator = np.random.default_rng(7)
    misses = 0
    for _ in range(runs):
        arms = generator.random(n) < share
        values = np.clip(generator.lognormal(-1.5, 0.7, n), 0, 1 + effect) + effect * arms
        values = np.clip(values, 0, 1)
        truth = _true_effect(effect)
        misses += any(
            _is_missed(arms[:seen], values[:seen], share, truth, level)
            for seen in range(n // looks, n + 1, n // looks)
        )
    assert misses <= 0.05 * runs


def _true_effect(effect: float) -> float:
    generator = np.random.default_rng(1)
    base = np.clip(generator.lognormal(-1.5, 0.7, 400_000), 0, 1 + effect)
    return float((np.clip(base + effect, 0, 1) - np.clip(base, 0, 1)).mean())


def _is_missed(arms, values, share: float, truth: float, level: float) -> bool:
    def sums(chosen) -> Counts:
        return Counts(scores={"m": Scores(len(chosen), chosen.sum(), (chosen**2).sum())})

    cell = Cell("s", 0, share, sums(values[arms]), sums(values[~arms]))
    metric = Guard("m", BUSINESS, higher_is_better=False)
    comparison = compare_arms(metric, [cell], 0.25, is_sticky=False)
    assert comparison is not None
    needed = -math.log(level)
    return comparison.log_beyond(truth) >= needed or comparison.log_below(truth) >= needed
