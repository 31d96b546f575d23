"""A retrain by the calendar, on a real Temporal: one runs, whoever else asks for one meanwhile."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest
from temporalio.client import Client
from volary_kit.errors import InvalidArgument, NotFound
from volary_workflows.identifiers import retrain_schedule_id
from volary_workflows.retrain.messages import Retrain, RetrainStatus
from volary_workflows.scheduling import Calendar, schedule_retrain, unschedule_retrain
from volary_workflows.starting import start_retrain
from volary_workflows.worker import make_worker, register_attributes

from .world import PLAN, RetrainWorld

WITHIN_S = 60.0
NEVER = Calendar(every_s=30 * 86_400.0)


@pytest.fixture
async def client(temporal: Client) -> Client:
    await register_attributes(temporal)
    return temporal


async def fired(client: Client, training: str, count: int) -> list[str]:
    """Return the workflows that the schedule has started, once they are so many."""
    handle = client.get_schedule_handle(retrain_schedule_id("default", training))
    async with asyncio.timeout(WITHIN_S):
        while True:
            actions = (await handle.describe()).info.recent_actions
            if len(actions) >= count:
                return [each.action.workflow_id for each in actions]
            await asyncio.sleep(0.1)


async def ended(client: Client, workflow_id: str) -> RetrainStatus:
    handle = client.get_workflow_handle(workflow_id, result_type=RetrainStatus)
    async with asyncio.timeout(WITHIN_S):
        return await handle.result()


async def test_what_is_due_runs_once_and_an_alert_or_a_hand_meanwhile_starts_no_other(client):
    training = f"delays-{uuid.uuid4().hex[:8]}"
    retrain = Retrain(training, requested_by="principals/ada", roll_out=False)
    world = RetrainWorld(endless="train")
    async with make_worker(client, world.activities(), task_queue=training):
        schedule = await schedule_retrain(
            client, retrain, Calendar(every_s=1.0), task_queue=training
        )
        async with asyncio.timeout(WITHIN_S):
            await world.reached.wait()
        (first, *_) = await fired(client, training, 1)
        for cause in ("alert-1", "manual-1"):
            other = await start_retrain(client, retrain, cause=cause, task_queue=training)
            assert (await ended(client, other.id)).outcome == "RETRAIN_IN_PROGRESS"
        async with asyncio.timeout(WITHIN_S):  # it was due again, and left out
            while not (await schedule.describe()).info.num_actions_skipped_overlap:
                await asyncio.sleep(0.1)
        assert len(await fired(client, training, 1)) == 1
        assert len(world.trainings) == 1
        assert world.trainings[0].trigger == "schedule"
        await schedule_retrain(client, retrain, NEVER, task_queue=training)
        world.endless = ""
        await client.get_workflow_handle(first).cancel()
        assert (await ended(client, first)).outcome == "CANCELLED"
        again = await start_retrain(client, retrain, cause="manual-2", task_queue=training)
        assert (await ended(client, again.id)).outcome == "REGISTERED"  # the way is free
    await unschedule_retrain(client, "default", training)
    with pytest.raises(NotFound):
        await unschedule_retrain(client, "default", training)


async def test_another_training_is_not_in_the_way(client):
    names = [f"delays-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    world = RetrainWorld(plan=replace(PLAN, model="other"), endless="train")
    async with make_worker(client, world.activities(), task_queue=names[0]):
        handles = [
            await start_retrain(client, Retrain(name), cause="manual", task_queue=names[0])
            for name in names
        ]
        async with asyncio.timeout(WITHIN_S):
            while len(world.trainings) < 2:
                await asyncio.sleep(0.05)
        for handle in handles:
            await handle.cancel()
            assert (await ended(client, handle.id)).outcome == "CANCELLED"


@pytest.mark.parametrize(
    "calendar",
    [
        Calendar(),
        Calendar(every_s=5.0, cron="0 3 * * *"),
        Calendar(every_s=0.1),
        Calendar(cron="x"),
    ],
    ids=["none", "both", "too often", "no cron"],
)
async def test_a_calendar_that_is_none_is_refused(client, calendar):
    with pytest.raises(InvalidArgument):
        await schedule_retrain(client, Retrain(f"delays-{uuid.uuid4().hex[:8]}"), calendar)
