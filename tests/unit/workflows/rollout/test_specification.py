"""What may be asked of a rollout, and how a wrong wish is answered: with its field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import ApprovalPolicy, RolloutSpec, ShadowStage, Step
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
            "guards": [{"kind": "latency_quantile", "limit": "250ms", "ceiling": "5%"}],
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
        ({"guards": [Guard(kind="quality")]}, "guards[0].kind"),
        ({"guards": [Guard(alpha=0)]}, "guards[0].alpha"),
        ({"guards": [Guard(alpha=1)]}, "guards[0].alpha"),
        ({"guards": [Guard(alpha=0.6), Guard("b", alpha=0.6)]}, "guards"),
        ({"guards": [Guard(margin=0)]}, "guards[0].margin"),
        ({"guards": [Guard(ceiling=1)]}, "guards[0].ceiling"),
        ({"guards": [Guard(kind="latency_quantile")], "sticky_by": "user"}, "guards[0].kind"),
        ({"approval": ApprovalPolicy("perhaps")}, "approval.mode"),
        ({"on_inconclusive": "hope"}, "on_inconclusive"),
        ({"on_breach": "shrug"}, "on_breach"),
        ({"max_extensions": -1}, "max_extensions"),
        ({"sticky_by": "User Id"}, "sticky_by"),
        ({"model": "../etc"}, "model"),
        ({"candidate": 0}, "candidate"),
        ({"poll_s": 0.001}, "poll"),
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
        ({"steps": [{"weight": "10%"}], "approval": {"quorum": 2}}, "approval.quorum"),
    ],
)
def test_a_wrong_declaration_is_named(document, field):
    with pytest.raises(SpecificationError) as refused:
        read(document)
    assert field in refused.value.problems


def test_a_sound_specification_is_let_through():
    require_sound(SOUND)
