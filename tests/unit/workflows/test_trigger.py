"""Alerts that ask for a retrain start one, once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio.client import WorkflowExecutionStatus
from volary.events.v1 import event_pb2
from volary_kit.timestamps import from_us
from volary_workflows.identifiers import TASK_QUEUE, retrain_workflow_id
from volary_workflows.trigger import RetrainTrigger, retrain_of
from volary_workflows.worker import make_worker

from tests.unit.workflows.retrain.world import RetrainWorld

DAY_US = 86_400_000_000


def alert(**changes) -> event_pb2.Event:
    said = {
        "alert": "projects/default/alerts/a1",
        "model": "delays",
        "state": "firing",
        "triggers_retrain": True,
        "training": "delays",
        "summary": "three features drifted",
        "window_end": from_us(9 * DAY_US),
    }
    return event_pb2.Event(
        id="e1", project="default", alert=event_pb2.AlertEvent(**(said | changes))
    )


def test_the_world_is_seen_from_the_end_of_the_alerts_window():
    retrain = retrain_of(alert())
    assert retrain is not None
    assert (retrain.training, retrain.trigger) == ("delays", "alert")
    assert retrain.until_us == 9 * DAY_US
    assert retrain.reason == "three features drifted"


@pytest.mark.parametrize(
    "event",
    [
        alert(state="resolved"),
        alert(triggers_retrain=False),
        alert(training=""),
        event_pb2.Event(id="e2", traffic=event_pb2.TrafficEvent(model="delays")),
    ],
)
def test_other_events_start_nothing(event):
    assert retrain_of(event) is None


async def test_an_alert_that_comes_twice_starts_one_workflow(time_skipping):
    async def temporal():
        return time_skipping.client

    trigger = RetrainTrigger(temporal)
    activities = RetrainWorld().activities()
    async with make_worker(time_skipping.client, activities, task_queue=TASK_QUEUE):
        await trigger([alert(), alert()])
        await trigger([alert()])
        handle = time_skipping.client.get_workflow_handle(
            retrain_workflow_id("default", "delays", "a1")
        )
        await time_skipping.sleep(timedelta(days=2))
        ended = await handle.describe()
        assert ended.status is WorkflowExecutionStatus.COMPLETED
        await trigger([alert()])  # delivered again after it has ended
        assert (await handle.describe()).run_id == ended.run_id
