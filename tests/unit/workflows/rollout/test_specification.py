"""What may be asked of a rollout, and how a wrong wish is answered: with its field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import (
    ApprovalPolicy,
    BlastRadius,
    FreezeWindow,
    Notification,
    RolloutSpec,
    ShadowStage,
    Step,
)
from volary_workflows.rollout.specification import (
    SpecificationError,
    read_specification,
    require_sound,
)

ROOT = Path(__file__).parents[4]
SOUND = RolloutSpec("delays", 2, steps=[Step(1_000), Step(5_000)])


def read(document) -> RolloutSpec:
    return read_specification(document, project="default", model="delays", candidate=2)


def test_the_example_is_read_whole():
    document = yaml.safe_load((ROOT / "examples/flights/training.yaml").read_text())
    spec = read(document["spec"]["rollout"])
    assert [step.weight for step in spec.steps] == [1_000, 5_000]
    assert spec.shadow is not None
    assert spec.shadow.fraction == 1.0
    assert {guard.kind for guard in spec.guards} == {"error_rate", "latency_quantile"}


def test_texts_become_numbers():
    spec = read(
        {
            "steps": [{"weight": "2.5%", "min_duration": "90s", "min_requests": 10.0}],
            "bake": "24h",
            "poll": "250ms",
            "guards": [
                {"kind": "latency_quantile", "limit": "250ms", "ceiling": "5%"},
                {"kind": "error_rate"},
            ],
            "approval": {"mode": "manual", "who": ["principals/ada"], "expire": "2d"},
        }
    )
    assert spec.steps == [Step(250, 90.0, 10)]
    assert (spec.bake_s, spec.poll_s) == (86_400.0, 0.25)
    assert (spec.guards[0].limit_us, spec.guards[0].ceiling) == (250_000, 0.05)
    assert spec.approval == ApprovalPolicy("manual", ["principals/ada"], 172_800.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [Step(0)]}, "steps[0].weight"),
        ({"steps": [Step(10_100)]}, "steps[0].weight"),
        ({"steps": [Step(500), Step(500)]}, "steps[1].weight"),
        ({"steps": [Step(500, min_duration_s=0)]}, "steps[0].min_duration"),
        ({"steps": [Step(500, min_requests=0)]}, "steps[0].min_requests"),
        ({"bake_s": 0}, "bake"),
        ({"bake_s": 10 * 365 * 86_400}, "bake"),
        ({"shadow": ShadowStage(1.01)}, "shadow.fraction"),
        ({"shadow": ShadowStage(0.0)}, "shadow.fraction"),
        ({"guards": []}, "guards"),
        ({"guards": [Guard(kind="vibes")]}, "guards[0].kind"),
        ({"guards": [Guard("Net Revenue", "business")]}, "guards[0].metric"),
        ({"guards": [Guard("revenue", "business", upper=0.0)]}, "guards[0].range"),
        ({"guards": [Guard("revenue", "business", upper=float("inf"))]}, "guards[0].range"),
        ({"guards": [Guard("revenue", "business", margin=1.0)]}, "guards[0].margin"),
        ({"guards": [Guard("accuracy", "quality")]}, "guards[0].kind"),
        ({"guards": [Guard("vibes", "quality")]}, "guards[0].metric"),
        (
            {"guards": [Guard("score", "prediction_distribution")], "shadow": ShadowStage()},
            "guards",
        ),
        ({"guards": [Guard(alpha=0)]}, "guards[0].alpha"),
        ({"guards": [Guard(alpha=1)]}, "guards[0].alpha"),
        ({"guards": [Guard(alpha=1.01)]}, "guards[0].alpha"),
        ({"guards": [Guard(alpha=float("nan"))]}, "guards[0].alpha"),
        ({"guards": [Guard("vibes")]}, "guards[0].metric"),
        ({"dry_run": [Guard("vibes")]}, "dry_run[0].metric"),
        ({"guards": [Guard(alpha=0.6), Guard(alpha=0.6)]}, "guards"),
        ({"guards": [Guard(margin=0)]}, "guards[0].margin"),
        ({"guards": [Guard(ceiling=1)]}, "guards[0].ceiling"),
        ({"guards": [Guard("latency", "latency_quantile")], "sticky_by": "u"}, "guards[0].kind"),
        ({"approval": ApprovalPolicy("perhaps")}, "approval.mode"),
        ({"on_inconclusive": "hope"}, "on_inconclusive"),
        ({"on_breach": "shrug"}, "on_breach"),
        ({"max_extensions": -1}, "max_extensions"),
        ({"sticky_by": "User Id"}, "sticky_by"),
        ({"model": "../etc"}, "model"),
        ({"candidate": 0}, "candidate"),
        ({"poll_s": 0.001}, "poll"),
        ({"steps": [Step(500), Step(400)]}, "steps[1].weight"),
        ({"steps": [Step(-1)]}, "steps[0].weight"),
        ({"bake_s": float("inf")}, "bake"),
        ({"approval": ApprovalPolicy("manual", quorum=0)}, "approval.quorum"),
        ({"approval": ApprovalPolicy("manual", ["principals/ada"], quorum=2)}, "approval.quorum"),
        ({"approval": ApprovalPolicy("none", quorum=2)}, "approval.quorum"),
        ({"approval": ApprovalPolicy("manual", valid_s=-1)}, "approval.valid"),
        ({"start_at_s": 1e12}, "start_at"),
        ({"cooldown_s": -1}, "cooldown"),
        ({"freeze": [FreezeWindow(10.0, 5.0)]}, "freeze[0]"),
        ({"freeze": [FreezeWindow(0.0, 8 * 86_400.0, weekly=True)]}, "freeze[0]"),
        ({"blast_radius": BlastRadius(2_000)}, "steps[1].weight"),
        ({"blast_radius": BlastRadius(0)}, "blast_radius.max_share"),
        ({"blast_radius": BlastRadius(max_exposed_calls=-1)}, "blast_radius.max_exposed_calls"),
        ({"notify": [Notification("file:///etc/passwd")]}, "notify[0].url"),
        ({"notify": [Notification("https://ada:secret@hooks.test")]}, "notify[0].url"),
        ({"notify": [Notification("https://hooks.test", ["LUNCH"])]}, "notify[0].on"),
    ],
)
def test_a_wrong_field_is_named(change, field):
    with pytest.raises(SpecificationError) as refused:
        require_sound(replace(SOUND, **change))
    assert list(refused.value.problems) == [field]


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"steps": [{"weight": "a lot"}]}, "steps[0].weight"),
        ({"steps": [{"weight": "10%", "min_duration": "soon"}]}, "steps[0].min_duration"),
        ({"steps": [{"weight": "10%", "min_requests": 1.5}]}, "steps[0].min_requests"),
        ({"steps": [{"weight": "10%", "max": 1}]}, "steps[0].max"),
        ({"steps": "10%"}, "steps"),
        ({"steps": [{"weight": "10%"}], "canary": True}, "canary"),
        ({"steps": [{"weight": "10%"}], "shadow": 1}, "shadow"),
        ({"steps": [{"weight": "10%"}], "bake": float("nan")}, "bake"),
        ({"steps": [{"weight": "10%"}], "approval": {"votes": 2}}, "approval.votes"),
        ({"steps": [{"weight": "0%"}]}, "steps[0].weight"),
        ({"steps": [{"weight": "101%"}]}, "steps[0].weight"),
        ({"steps": [{"weight": "10%"}], "bake": "0s"}, "bake"),
        ({"steps": [{"weight": "10%"}], "bake": "3650d"}, "bake"),
        ({"steps": [{"weight": "10%"}], "start_at": "soon"}, "start_at"),
        ({"steps": [{"weight": "10%"}], "freeze": [{"start": "x", "end": "y"}]}, "freeze[0].start"),
        (
            {
                "steps": [{"weight": "10%"}],
                "freeze": [{"weekly": True, "start": "Fri 25:00", "end": "Mon 06:00"}],
            },
            "freeze[0].start",
        ),
        ({"steps": [{"weight": "10%"}], "notify": [{"url": "nowhere"}]}, "notify[0].url"),
        ({"steps": [{"weight": "10%"}], "blast_radius": 3}, "blast_radius"),
        ({"guards": [{"kind": "business"}]}, "guards[0].metric"),
        ({"guards": [{"kind": "business", "metric": "m", "range": 5}]}, "guards[0].range"),
        ({"guards": [{"kind": "business", "metric": "m", "range": [9, 1]}]}, "guards[0].range"),
    ],
)
def test_a_wrong_declaration_is_named(document, field):
    with pytest.raises(SpecificationError) as refused:
        read(document)
    assert field in refused.value.problems


def test_a_sound_specification_is_let_through():
    require_sound(SOUND)


def test_a_production_plan_is_read_whole():
    spec = read(
        {
            "steps": [{"weight": "1%"}, {"weight": "20%"}],
            "guards": [
                {"kind": "error_rate"},
                {"kind": "latency_quantile", "metric": "latency", "dry_run": True},
            ],
            "approval": {
                "mode": "manual",
                "who": ["principals/ada", "principals/bob"],
                "quorum": 2,
                "valid": "2d",
            },
            "start_at": "2026-12-01T08:00:00Z",
            "cooldown": "6h",
            "freeze": [
                {"weekly": True, "start": "Fri 18:00", "end": "Mon 06:00"},
                {"start": "2026-12-24T00:00:00Z", "end": "2026-12-27T00:00:00Z"},
            ],
            "blast_radius": {"max_share": "20%", "max_exposed_calls": 5_000},
            "notify": [{"url": "https://hooks.test/volary", "on": ["promoted", "rolled_back"]}],
        }
    )
    assert spec.bake_s == 86_400.0
    assert ([guard.kind for guard in spec.guards], [guard.kind for guard in spec.dry_run]) == (
        ["error_rate"],
        ["latency_quantile"],
    )
    assert (spec.approval.quorum, spec.approval.valid_s) == (2, 172_800.0)
    assert spec.start_at_s == 1_796_112_000.0
    assert spec.freeze[0] == FreezeWindow(4 * 86_400.0 + 64_800.0, 21_600.0, weekly=True)
    assert spec.freeze[1].end_s - spec.freeze[1].start_s == 3 * 86_400.0
    assert spec.blast_radius == BlastRadius(2_000, 5_000)
    assert spec.notify == [Notification("https://hooks.test/volary", ["PROMOTED", "ROLLED_BACK"])]


def test_guards_on_the_pairs_of_a_shadow_have_margins_of_their_own():
    spec = read(
        {
            "shadow": {"min_requests": 500},
            "steps": [{"weight": "10%"}],
            "guards": [
                {"kind": "error_rate"},
                {"kind": "quality"},
                {"kind": "prediction_distribution"},
            ],
        }
    )
    _, quality, distribution = spec.guards
    assert (quality.metric, quality.margin) == ("accuracy", 0.02)
    assert (distribution.metric, distribution.min_effect) == ("score", 0.1)


def test_a_business_metric_names_its_range_and_which_way_is_better():
    spec = read(
        {
            "steps": [{"weight": "10%"}],
            "guards": [
                {"kind": "error_rate"},
                {
                    "kind": "business",
                    "metric": "basket_value",
                    "range": [0, 250.0],
                    "higher_is_better": False,
                    "margin": "1%",
                },
            ],
        }
    )
    guard = spec.guards[1]
    assert (guard.metric, guard.lower, guard.upper) == ("basket_value", 0.0, 250.0)
    assert (guard.higher_is_better, guard.margin) == (False, 0.01)


def test_one_metric_has_one_range():
    guards = [Guard(), Guard("m", "business"), Guard("m", "business", upper=2.0)]
    with pytest.raises(SpecificationError) as refused:
        require_sound(replace(SOUND, guards=guards))
    assert list(refused.value.problems) == ["guards[1].range", "guards[2].range"]
