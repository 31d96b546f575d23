"""What nobody may ask of a rollout: refused with its field before anything is written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError
from volary_kit.errors import InvalidArgument
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import ApprovalPolicy, Step
from volary_workflows.rollout.specification import SpecificationError, read_specification
from volary_workflows.starting import rollout_handle, start_rollout

from .world import SPEC, World, rolled

YEARS_S = 10 * 365 * 86_400.0
DISTRIBUTION = Guard("score", "prediction_distribution")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": [Step(0)]}, "steps[0].weight"),
        ({"steps": [Step(10_100)]}, "steps[0].weight"),
        ({"steps": [Step(5_000), Step(1_000)]}, "steps[1].weight"),
        ({"bake_s": 0.0}, "bake"),
        ({"bake_s": YEARS_S}, "bake"),
        ({"guards": [Guard("vibes")]}, "guards[0].metric"),
        ({"guards": [Guard(alpha=0.0)]}, "guards[0].alpha"),
        ({"guards": [Guard(alpha=1.5)]}, "guards[0].alpha"),
        ({"guards": [DISTRIBUTION]}, "guards"),
        ({"guards": [DISTRIBUTION], "dry_run": [Guard()]}, "guards"),
        ({"guards": [Guard("accuracy", "quality")]}, "guards"),
        ({"guards": [Guard(promotes=False), DISTRIBUTION]}, "guards"),
        ({"guards": [Guard(promotes=False)]}, "guards"),
    ],
)
async def test_a_wrong_wish_starts_nothing(time_skipping, change, field):
    spec = replace(SPEC, model="never-started", **change)
    with pytest.raises(InvalidArgument) as refused:
        await start_rollout(time_skipping.client, spec, task_queue="nobody")
    assert field in refused.value.violations
    with pytest.raises(RPCError, match="not found"):
        await rollout_handle(time_skipping.client, "default", "never-started").describe()


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"steps": [{"weight": "0%"}]}, "steps[0].weight"),
        ({"steps": [{"weight": "101%"}]}, "steps[0].weight"),
        ({"steps": [{"weight": "50%"}, {"weight": "10%"}]}, "steps[1].weight"),
        ({"bake": "0s"}, "bake"),
        ({"bake": "3650d"}, "bake"),
        ({"guards": [{"metric": "vibes"}]}, "guards[0].metric"),
        ({"guards": [{"kind": "vibes"}]}, "guards[0].kind"),
        ({"guards": [{"alpha": 0}]}, "guards[0].alpha"),
        ({"guards": [{"alpha": "100%"}]}, "guards[0].alpha"),
        ({"guards": [{"alpha": -0.01}]}, "guards[0].alpha"),
        ({"guards": [{"kind": "prediction_distribution"}]}, "guards"),
    ],
)
def test_a_wrong_declaration_is_refused_where_it_is_read(document, field):
    declared = {"steps": [{"weight": "10%"}], "shadow": {}, **document}
    with pytest.raises(SpecificationError) as refused:
        read_specification(declared, project="default", model="delays", candidate=2)
    assert field in refused.value.problems


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (SPEC, "candidate: version 2 of delays is not in the registry"),
        (SPEC, "candidate: version 2 was rejected by principals/ada"),
        (SPEC, "candidate: projects/default/models/other/versions/2 is not a version of delays"),
        (replace(SPEC, approval=ApprovalPolicy("required")), ""),
    ],
    ids=["unknown", "rejected", "of-another-model", "not-approved"],
)
async def test_a_candidate_that_the_registry_refuses_changes_nothing(time_skipping, spec, problem):
    world = World(problems=[problem] if problem else [])
    with pytest.raises(WorkflowFailureError) as failure:
        await rolled(time_skipping, world, spec)
    assert failure.value.cause.type == "INVALID_SPECIFICATION"
    assert list(failure.value.cause.details[0]) == ["candidate"]
    assert (world.changes, world.decisions, world.loaded, world.tasks) == ([], [], set(), [])
