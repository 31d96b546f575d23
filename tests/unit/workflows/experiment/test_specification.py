"""What may be asked of an experiment, and how a wrong wish is answered: with its field."""

from __future__ import annotations

from dataclasses import replace

import pytest
from volary_kit.errors import InvalidArgument
from volary_workflows.experiment.messages import Arm, Metric, Segment
from volary_workflows.experiment.specification import (
    SpecificationError,
    read_experiment,
    require_sound,
)
from volary_workflows.judge.inputs import Guard
from volary_workflows.starting import start_experiment

from .world import SPEC

DECLARED = {
    "model": "delays",
    "arms": [
        {"name": "today", "version": 1, "share": "50%"},
        {"name": "bold", "version": 2.0, "share": 0.5},
    ],
    "control": "today",
    "metric": {"name": "basket_value", "range": [0, 250], "expected": 30},
    "sticky_by": "user-id",
    "min_effect": 1.5,
    "min_duration": "7d",
    "max_duration": "14d",
    "group": "checkout",
    "guard": {"alpha": "1%", "ceiling": "2%"},
    "segment": {"header": "x-ring", "values": ["beta", "dev"]},
}


def read(**changes):
    return read_experiment({**DECLARED, **changes}, name="bolder", project="default")


def test_a_declaration_is_read_whole():
    spec = read()
    assert spec.arms == [Arm("today", 1, 5_000), Arm("bold", 2, 5_000)]
    assert spec.metric == Metric("basket_value", upper=250.0, expected=30.0)
    assert (spec.max_duration_s, spec.min_effect, spec.group) == (14 * 86_400.0, 1.5, "checkout")
    assert (spec.guard.alpha, spec.guard.ceiling) == (0.01, 0.02)
    assert spec.segment == Segment("x-ring", ["beta", "dev"])
    assert (spec.production.version, [arm.name for arm in spec.treatments]) == (1, ["bold"])


WRONG = [
    ({"name": "a b"}, "name"),
    ({"model": "../etc"}, "model"),
    ({"arms": [Arm("today", 1, 5_000)]}, "arms"),
    ({"arms": [Arm("today", 1, 5_000), Arm("bold", 2, 4_000)]}, "arms"),
    ({"arms": [Arm("today", 1, 10_000), Arm("bold", 2, 0)]}, "arms[0].share"),
    ({"arms": [Arm("today", 1, 5_000), Arm("today", 2, 5_000)]}, "arms[1].name"),
    ({"arms": [Arm("today", 1, 5_000), Arm("bold", 1, 5_000)]}, "arms[1].version"),
    ({"arms": [Arm("today", 1, -100), Arm("bold", 2, 10_100)]}, "arms[1].share"),
    ({"control": "nobody"}, "control"),
    ({"metric": Metric("Net Revenue")}, "metric.name"),
    ({"metric": Metric("vibes", "truth"), "sticky_by": ""}, "metric.name"),
    ({"metric": Metric("accuracy", "truth")}, "metric.source"),
    ({"metric": Metric("m", "rumour")}, "metric.source"),
    ({"metric": Metric("m", lower=1.0, upper=1.0, expected=1.0)}, "metric.range"),
    ({"metric": Metric("m", upper=float("inf"))}, "metric.range"),
    ({"metric": Metric("m", upper=5.0, expected=9.0)}, "metric.expected"),
    ({"alpha": 0.0}, "alpha"),
    ({"alpha": 1.0}, "alpha"),
    ({"alpha": float("nan")}, "alpha"),
    ({"alpha_of_ratio": 1.5}, "alpha_of_ratio"),
    ({"min_effect": -1.0}, "min_effect"),
    ({"min_effect": 100.0}, "min_effect"),
    ({"guard": Guard(alpha=0.0)}, "guard.alpha"),
    ({"guard": Guard("latency", "latency_quantile")}, "guard.kind"),
    ({"max_duration_s": 0.0}, "max_duration"),
    ({"max_duration_s": 10 * 365 * 86_400.0}, "max_duration"),
    ({"min_duration_s": 15 * 86_400.0}, "min_duration"),
    ({"poll_s": 1.0}, "poll"),
    ({"sticky_by": "User Id"}, "sticky_by"),
    ({"salt": "pepper!"}, "salt"),
    ({"segment": Segment("X Ring", ["beta"])}, "segment.header"),
    ({"segment": Segment("", ["beta"])}, "segment.header"),
    ({"segment": Segment("x-ring")}, "segment.values"),
    ({"segment": Segment("x-ring", ["beta", "beta"])}, "segment.values"),
    ({"segment": Segment("x-ring", [""])}, "segment.values"),
    ({"segment": Segment("x-ring", [str(i) for i in range(65)])}, "segment.values"),
    ({"group": "A/B"}, "group"),
]


@pytest.mark.parametrize(("change", "field"), WRONG)
def test_a_wrong_field_is_named(change, field):
    with pytest.raises(SpecificationError) as refused:
        require_sound(replace(SPEC, **change))
    assert field in refused.value.problems


async def test_a_wrong_wish_starts_nothing(time_skipping):
    with pytest.raises(InvalidArgument) as refused:
        await start_experiment(time_skipping.client, replace(SPEC, alpha=2.0), task_queue="nobody")
    assert "alpha" in refused.value.violations


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"arms": "both"}, "arms"),
        ({"arms": [{"name": "a", "version": 1, "weight": 5}]}, "arms[0].weight"),
        ({"metric": "clicks"}, "metric"),
        ({"metric": {"name": "m", "range": [0]}}, "metric.range"),
        ({"metric": {"name": "m", "expected": "much"}}, "metric.expected"),
        ({"guard": 1}, "guard"),
        ({"guard": {"kind": "quality"}}, "guard.kind"),
        ({"max_duration": "soon"}, "max_duration"),
        ({"steps": []}, "steps"),
        ({"segment": "beta"}, "segment"),
        ({"segment": {"values": ["beta"]}}, "segment"),
        ({"segment": {"header": "x-ring", "values": [1]}}, "segment.values"),
        ({"segment": {"header": "x-ring", "values": ["beta"], "share": "5%"}}, "segment.share"),
    ],
)
def test_a_wrong_declaration_is_named(change, field):
    with pytest.raises(SpecificationError) as refused:
        read(**change)
    assert field in refused.value.problems
