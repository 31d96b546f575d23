"""One rollout of a model at a time, unless the new one supersedes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from volary_kit.errors import AlreadyExists, InvalidArgument
from volary_workflows.retrain.messages import Retrain
from volary_workflows.rollout.messages import Step
from volary_workflows.starting import rollout_handle, start_retrain, start_rollout

from tests.unit.workflows.retrain import world as retraining
from tests.unit.workflows.rollout.world import SPEC, UNSURE, World, serving

WAITING = replace(SPEC, model="contested", max_extensions=1_000)


async def test_a_second_rollout_is_refused_or_supersedes(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        client = time_skipping.client
        first = await start_rollout(client, WAITING, task_queue=queue)
        await time_skipping.sleep(timedelta(hours=8))
        other = replace(WAITING, candidate=3, requested_by="principals/ada")
        with pytest.raises(AlreadyExists) as refused:
            await start_rollout(client, other, task_queue=queue)
        assert refused.value.reason == "ROLLOUT_IN_PROGRESS"
        world.looks.clear()
        second = await start_rollout(client, other, supersede=True, task_queue=queue)
        ended = await client.get_workflow_handle(
            first.id, run_id=first.first_execution_run_id, result_type=type(await second.result())
        ).result()
        status = await rollout_handle(client, "default", "contested").result()
    assert (ended.state, ended.reason) == ("SUPERSEDED", "superseded by version 3")
    assert (status.state, status.candidate) == ("PROMOTED", 3)


async def test_superseding_nothing_just_starts(time_skipping):
    async with serving(time_skipping, World()) as queue:
        spec = replace(SPEC, model="alone")
        handle = await start_rollout(time_skipping.client, spec, supersede=True, task_queue=queue)
        assert (await handle.result()).state == "PROMOTED"


async def test_a_wrong_specification_is_refused_before_anything_starts(time_skipping):
    with pytest.raises(InvalidArgument) as refused:
        await start_rollout(time_skipping.client, replace(SPEC, steps=[Step(10_100)]))
    assert list(refused.value.violations) == ["steps[0].weight"]


async def test_a_retrain_for_the_same_cause_is_the_same_workflow(time_skipping):
    client = time_skipping.client
    async with retraining.serving(time_skipping, retraining.RetrainWorld()) as queue:
        with time_skipping.auto_time_skipping_disabled():
            first, second = [
                await start_retrain(client, Retrain("delays"), cause="today", task_queue=queue)
                for _ in range(2)
            ]
            assert second.id == first.id
            assert (await second.describe()).run_id == first.first_execution_run_id
        assert (await first.result()).outcome == "PROMOTED"
