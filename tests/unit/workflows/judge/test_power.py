"""The plan: what a declared rollout can see before it starts."""

from __future__ import annotations

import json

import pytest
from volary_workflows.judge.inputs import Cell, Counts, Guard, Inputs
from volary_workflows.judge.power import PlannedStage, plan_rollout
from volary_workflows.judge.verdict import judge

ERRORS = [Guard()]
STAGES = [
    PlannedStage("canary", 0.01, 600, 100),
    PlannedStage("10 %", 0.1, 600, 100),
    PlannedStage("50 %", 0.5, 600, 100),
]


def planned(stages=STAGES, guards=ERRORS, **more):
    settings = {
        "bake_s": 3_600.0, "max_extensions": 20, "calls_per_s": 10.0, "baseline_error": 0.01,
        "runs": 300,
    }  # fmt: skip
    return plan_rollout(stages, guards, **{**settings, **more})


def test_a_small_step_is_said_to_be_blind_to_small_regressions():
    plan = planned()
    assert any(
        text.startswith("canary (0.01 of the calls): a rise of errors by a factor of")
        for text in plan.warnings
    )
    by_ratio = {power.ratio: power for power in plan.powers}
    assert by_ratio[1.0].stopped <= 0.03
    assert by_ratio[1.5].by_stage[0] < 0.2
    assert by_ratio[10.0].by_stage[0] > 0.95
    for power in plan.powers:
        assert power.by_stage == sorted(power.by_stage)
        assert power.stopped == power.by_stage[-1]


def test_more_traffic_sees_more_and_a_shadow_exposes_nobody():
    def stopped(plan):
        return next(power.stopped for power in plan.powers if power.ratio == 2.0)

    assert stopped(planned(calls_per_s=50.0)) > stopped(planned()) + 0.1
    shadow = PlannedStage("shadow", 1.0, 3_600, 100, is_shadow=True)
    seen = next(p for p in planned([shadow, *STAGES]).powers if p.ratio == 5.0)
    assert seen.by_stage[0] > 0.95
    assert seen.median_exposed == 0


def test_a_step_takes_what_the_judge_asks_for():
    stage = PlannedStage("canary", 0.1, 1.0, 1)
    plan = planned([stage], calls_per_s=1.0, baseline_error=0.0)
    time = plan.stages[0]
    assert time.binding == "evidence"
    calls = round(time.evidence_s * 0.1)
    # without an error it is below a ceiling of 5 % after 122 calls, at half of the weight after 136
    assert 128 <= calls <= 136

    def verdict(count):
        cell = Cell("canary", 1, 0.1, Counts(count, 0), Counts(9 * count, 0))
        return judge(Inputs([Guard()], [cell])).verdict

    assert (verdict(calls), verdict(calls - 3)) == ("PASS", "INCONCLUSIVE")
    assert plan.total_s == pytest.approx(time.duration_s + 3_600)


def test_a_step_that_can_never_pass_and_one_that_is_given_up_are_said():
    strict = planned(guards=[Guard(ceiling=0.0)], max_extensions=1)
    assert any("it would end in evidence_timeout" in text for text in strict.warnings)
    hopeless = planned(guards=[Guard(margin=1e-9, ceiling=0.005)])
    assert any("no number of calls" in text for text in hopeless.warnings)
    assert hopeless.stages[0].binding == "never"


def test_floors_scores_and_users_are_said():
    tiny = planned(guards=[Guard(min_effect=0.05)], calls_per_s=200.0)
    assert any("below the floor: it pauses" in text for text in tiny.warnings)
    late = planned(
        guards=[Guard(), Guard("accuracy", "quality"), Guard("revenue", "business")],
        is_sticky=True,
    )
    needs = {(s.metric, s.effect): s.count for s in late.scores}
    assert needs["accuracy", 0.05] < 600 < needs["accuracy", 0.02] < needs["accuracy", 0.01]
    assert needs["revenue", 0.05] < needs["revenue", 0.01]
    assert any("sticky users" in text for text in late.warnings)


def test_latency_is_not_blamed_for_what_it_tolerates():
    plan = planned(guards=[Guard("latency", "latency_quantile", margin=1.0, min_effect=0.05)])
    assert {power.baseline_rate for power in plan.powers} == {0.05}
    assert not any("factor of 2 " in text for text in plan.warnings)


def test_without_errors_only_the_ceiling_counts():
    plan = planned(baseline_error=0.0)
    assert plan.powers == []
    assert any("only the ceiling counts" in text for text in plan.warnings)


@pytest.mark.parametrize(
    ("field", "value"), [("calls_per_s", 0.0), ("baseline_error", 1.0), ("baseline_error", -0.1)]
)
def test_rates_that_make_no_rollout_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        planned(**{field: value})


def test_the_same_plan_gives_the_same_table():
    assert planned().to_document() == planned().to_document()
    json.dumps(planned().to_document(), allow_nan=False)
