"""Two builds of the worker on a real Temporal: each ends what it began."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest
from temporalio.client import Client
from temporalio.common import WorkerDeploymentVersion
from volary_workflows.deployments import made_current
from volary_workflows.rollout.messages import ApprovalPolicy, Command, RolloutStatus, Step
from volary_workflows.starting import start_rollout
from volary_workflows.worker import make_worker, register_attributes

from tests.unit.workflows.rollout.world import SPEC, World

ADA = Command("principals/ada")
WITHIN_S = 90.0
SOON = replace(SPEC, shadow=None, steps=[Step(5_000, 0.3, 1)], bake_s=0.3, poll_s=0.3)


async def until(handle, state: str) -> None:
    while (await handle.query("status", result_type=RolloutStatus)).state != state:
        await asyncio.sleep(0.1)


@pytest.mark.timeout(200)
async def test_a_rollout_ends_with_the_build_that_began_it_and_new_ones_begin_with_the_new(
    temporal: Client,
):
    await register_attributes(temporal)
    name = f"mesh-{uuid.uuid4().hex[:8]}"
    old, new = (WorkerDeploymentVersion(name, build) for build in ("1", "2"))
    before, after = World(), World()
    begun = replace(SOON, model=f"{name}-a", approval=ApprovalPolicy("manual"))
    async with asyncio.timeout(WITHIN_S):
        async with make_worker(temporal, before.activities(), task_queue=name, deployed_as=old):
            await made_current(temporal, old)
            first = await start_rollout(temporal, begun, task_queue=name)
            await until(first, "AWAITING_APPROVAL")
            async with make_worker(temporal, after.activities(), task_queue=name, deployed_as=new):
                await made_current(temporal, new)
                later = replace(SOON, model=f"{name}-b")
                second = await start_rollout(temporal, later, task_queue=name)
                assert (await second.result()).state == "PROMOTED"
                await first.execute_update("approve", ADA, result_type=RolloutStatus)
                assert (await first.result()).state == "PROMOTED"
    models = [{change.subject.model for change in world.changes} for world in (before, after)]
    assert models == [{f"{name}-a"}, {f"{name}-b"}]
