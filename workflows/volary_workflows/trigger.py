"""Start a retrain when the monitor's alert asks for one: once for each alert."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError
from volary.events.v1 import event_pb2
from volary_kit.errors import Unavailable
from volary_kit.timestamps import to_us

from volary_workflows.identifiers import TASK_QUEUE, retrain_workflow_id
from volary_workflows.retrain.messages import Retrain

log = logging.getLogger(__name__)
GROUP = "workflows"
FIRING = "firing"


class RetrainTrigger:
    """The handler of `volary:alerts`: an alert that asks for a retrain starts one workflow."""

    def __init__(self, temporal: Callable[[], Awaitable[Client]]) -> None:
        self._temporal = temporal

    async def __call__(self, events: Sequence[event_pb2.Event]) -> None:
        """Start what the events ask for; raise Unavailable when Temporal does not answer."""
        for event in events:
            retrain = retrain_of(event)
            if retrain is not None:
                await self._start(retrain)

    async def _start(self, retrain: Retrain) -> None:
        client = await self._temporal()
        cause = retrain.alert.rpartition("/")[2]
        workflow_id = retrain_workflow_id(retrain.project, retrain.training, cause)
        try:
            await client.start_workflow(
                "RetrainWorkflow",
                retrain,
                id=workflow_id,
                task_queue=TASK_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )
        except WorkflowAlreadyStartedError:
            log.info("%s was started before", workflow_id)
        except RPCError as error:
            raise Unavailable("TEMPORAL_UNAVAILABLE", "Temporal did not start a retrain") from error


def retrain_of(event: event_pb2.Event) -> Retrain | None:
    """Return the retrain that an event asks for, None for any other event.

    The world is seen from the end of the alert's window: that is what raised it.
    """
    if event.WhichOneof("payload") != "alert":
        return None
    alert = event.alert
    if alert.state != FIRING or not alert.triggers_retrain or not alert.training:
        return None
    return Retrain(
        training=alert.training.rpartition("/")[2],
        project=event.project,
        trigger="alert",
        until_us=to_us(alert.window_end),
        alert=alert.alert,
        reason=alert.summary,
    )
