"""Retrains by a calendar: a Temporal schedule of one training, which people set and take away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
)
from temporalio.service import RPCError, RPCStatusCode
from volary_kit.errors import InvalidArgument, NotFound

from volary_workflows.identifiers import TASK_QUEUE, retrain_schedule_id, retrain_workflow_id
from volary_workflows.retrain.messages import Retrain

CAUSE = "schedule"  # Temporal adds the instant to the id: each time that it is due is a cause
LATEST = timedelta(days=1)  # after an outage, what was due since then makes up for it, once
LEAST_S = 1.0


@dataclass(frozen=True)
class Calendar:
    """When a retrain is due: every so many seconds, or by a cron expression in UTC."""

    every_s: float = 0.0
    cron: str = ""


async def schedule_retrain(
    client: Client, retrain: Retrain, calendar: Calendar, *, task_queue: str = TASK_QUEUE
) -> ScheduleHandle:
    """Set when a training is retrained, instead of what was set before.

    A time that comes while a retrain of the training runs, whatever started it, is left out.
    Raises InvalidArgument for a calendar that is none.
    """
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            "RetrainWorkflow",
            replace(retrain, trigger=CAUSE),
            id=retrain_workflow_id(retrain.project, retrain.training, CAUSE),
            task_queue=task_queue,
        ),
        spec=_spec_of(calendar),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=LATEST),
    )
    schedule_id = retrain_schedule_id(retrain.project, retrain.training)
    try:
        return await client.create_schedule(schedule_id, schedule)
    except ScheduleAlreadyRunningError:
        handle = client.get_schedule_handle(schedule_id)
        await handle.update(lambda _: ScheduleUpdate(schedule))
        return handle
    except RPCError as error:
        if error.status is not RPCStatusCode.INVALID_ARGUMENT:
            raise
        raise InvalidArgument("CALENDAR_INVALID", error.message, field="cron") from error


async def unschedule_retrain(client: Client, project: str, training: str) -> None:
    """Take a training's schedule away; raise NotFound when there is none."""
    try:
        await client.get_schedule_handle(retrain_schedule_id(project, training)).delete()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        text = f"no schedule retrains {training}"
        raise NotFound("SCHEDULE_NOT_FOUND", text, {"training": training}) from error


def _spec_of(calendar: Calendar) -> ScheduleSpec:
    if bool(calendar.every_s) == bool(calendar.cron):
        raise InvalidArgument("CALENDAR_INVALID", "name an interval or a cron expression: one")
    if calendar.cron:
        return ScheduleSpec(cron_expressions=[calendar.cron])
    if calendar.every_s < LEAST_S:
        text = f"must be {LEAST_S:g} s or more"
        raise InvalidArgument("CALENDAR_INVALID", text, field="every")
    return ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(seconds=calendar.every_s))])
