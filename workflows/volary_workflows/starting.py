"""Start workflows and talk to them, for whoever holds a Temporal client.

handle = await start_rollout(client, spec)
await told(handle, "approve", Command("principals/ada", request_id=str(uuid4())), RolloutStatus)
status = await handle.query("status", result_type=RolloutStatus)
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from volary_kit.errors import AlreadyExists, InvalidArgument

from volary_workflows.experiment.messages import Experiment, ExperimentSpec, ExperimentStatus
from volary_workflows.experiment.soundness import require_sound as require_sound_experiment
from volary_workflows.identifiers import (
    TASK_QUEUE,
    experiment_workflow_id,
    retrain_workflow_id,
    rollout_workflow_id,
)
from volary_workflows.retrain.messages import Retrain, RetrainStatus
from volary_workflows.rollout.messages import Command, Rollout, RolloutSpec, RolloutStatus
from volary_workflows.rollout.specification import SpecificationError, require_sound

TELLING_S, ATTEMPT_S, AGAIN_S = 30.0, 5.0, 0.2
LOST = frozenset(
    {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED}
)


class Told(Protocol):
    """A status that says which requests had their effect."""

    @property
    def heard(self) -> list[str]:
        """Return them, each as `{word}/{request_id}`."""
        ...


StatusT = TypeVar("StatusT", bound=Told)


async def start_rollout(
    client: Client,
    spec: RolloutSpec,
    *,
    supersede: bool = False,
    task_queue: str = TASK_QUEUE,
) -> WorkflowHandle[object, RolloutStatus]:
    """Start a rollout; raise InvalidArgument by field, AlreadyExists while one of it is running.

    With `supersede` the running one turns back first and ends SUPERSEDED.
    """
    _require_sound(spec)
    await _require_no_experiment(client, spec.project, spec.model)
    workflow_id = rollout_workflow_id(spec.project, spec.model)
    if supersede:
        await _superseded(client, workflow_id, spec)
    try:
        return await client.start_workflow(
            "RolloutWorkflow",
            Rollout(spec),
            id=workflow_id,
            task_queue=task_queue,
            result_type=RolloutStatus,
        )
    except WorkflowAlreadyStartedError as error:
        raise AlreadyExists(
            "ROLLOUT_IN_PROGRESS",
            f"a rollout of {spec.model} is in progress: abort it, or start with supersede",
            {"model": spec.model, "workflow_id": workflow_id},
        ) from error


async def start_experiment(
    client: Client, spec: ExperimentSpec, *, task_queue: str = TASK_QUEUE
) -> WorkflowHandle[object, ExperimentStatus]:
    """Start an experiment; raise InvalidArgument by field, AlreadyExists while another is running.

    A running rollout of the model stands in the way as well. Should one start at the same moment,
    whoever writes the traffic first fences the other off.
    """
    _require_sound(spec)
    if await _is_running(client, rollout_workflow_id(spec.project, spec.model)):
        raise AlreadyExists(
            "ROLLOUT_IN_PROGRESS",
            f"a rollout of {spec.model} is in progress: it owns the traffic",
            {"model": spec.model},
        )
    try:
        return await client.start_workflow(
            "ExperimentWorkflow",
            Experiment(spec),
            id=experiment_workflow_id(spec.project, spec.model),
            task_queue=task_queue,
            result_type=ExperimentStatus,
        )
    except WorkflowAlreadyStartedError as error:
        raise _experiment_in_progress(spec.model) from error


def experiment_handle(
    client: Client, project: str, model: str
) -> WorkflowHandle[object, ExperimentStatus]:
    """Return the handle of a model's experiment, the running one or the last."""
    return client.get_workflow_handle(
        experiment_workflow_id(project, model), result_type=ExperimentStatus
    )


async def start_retrain(
    client: Client, retrain: Retrain, *, cause: str, task_queue: str = TASK_QUEUE
) -> WorkflowHandle[object, RetrainStatus]:
    """Start a retrain, or return the one that runs for the same cause."""
    workflow_id = retrain_workflow_id(retrain.project, retrain.training, cause)
    try:
        return await client.start_workflow(
            "RetrainWorkflow",
            retrain,
            id=workflow_id,
            task_queue=task_queue,
            result_type=RetrainStatus,
        )
    except WorkflowAlreadyStartedError:
        return client.get_workflow_handle(workflow_id, result_type=RetrainStatus)


def rollout_handle(
    client: Client, project: str, model: str
) -> WorkflowHandle[object, RolloutStatus]:
    """Return the handle of a model's rollout, the running one or the last."""
    return client.get_workflow_handle(
        rollout_workflow_id(project, model), result_type=RolloutStatus
    )


async def told(
    handle: WorkflowHandle[Any, StatusT],
    word: str,
    command: Command,
    status: type[StatusT],
    *,
    within_s: float = TELLING_S,
) -> StatusT:
    """Say a word to a rollout or an experiment until it is answered; it has its effect once.

    It is said again while Temporal or the worker is away, for `within_s`, with the command's
    `request_id`. Raises WorkflowUpdateFailedError when it is refused, RPCError when there is
    nobody to hear it, and what the last attempt failed with when the time is over.
    """
    give_up_s = time.monotonic() + within_s
    while True:
        try:
            return await handle.execute_update(
                word,
                command,
                id=f"{word}/{command.request_id}" if command.request_id else None,
                result_type=status,
                rpc_timeout=timedelta(seconds=ATTEMPT_S),
            )
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            if not command.request_id or time.monotonic() > give_up_s:
                raise
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND and command.request_id:
                found = await handle.query("status", result_type=status)
                if f"{word}/{command.request_id}" in found.heard:
                    return found  # and it has ended since
            is_lost = error.status in LOST and command.request_id
            if not is_lost or time.monotonic() > give_up_s:
                raise
        await asyncio.sleep(AGAIN_S)


async def _superseded(client: Client, workflow_id: str, spec: RolloutSpec) -> None:
    """End the running rollout, if there is one, and wait until it has turned back."""
    running = client.get_workflow_handle(workflow_id, result_type=RolloutStatus)
    text = f"superseded by version {spec.candidate}"
    command = Command(spec.requested_by, text, str(uuid4()))
    try:
        await told(running, "supersede", command, RolloutStatus)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return  # none is running
    except WorkflowUpdateFailedError:
        pass  # it is past the point of return: wait for its end
    try:
        await running.result()
    except WorkflowFailureError:
        return


async def _require_no_experiment(client: Client, project: str, model: str) -> None:
    if await _is_running(client, experiment_workflow_id(project, model)):
        raise _experiment_in_progress(model)


def _experiment_in_progress(model: str) -> AlreadyExists:
    return AlreadyExists(
        "EXPERIMENT_IN_PROGRESS",
        f"an experiment on {model} is in progress: stop it, or wait for its end",
        {"model": model},
    )


async def _is_running(client: Client, workflow_id: str) -> bool:
    try:
        found = await client.get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return found.status is WorkflowExecutionStatus.RUNNING


def _require_sound(spec: RolloutSpec | ExperimentSpec) -> None:
    try:
        if isinstance(spec, ExperimentSpec):
            require_sound_experiment(spec)
        else:
            require_sound(spec, is_new=True)
    except SpecificationError as error:
        raise InvalidArgument(
            "SPECIFICATION_INVALID", str(error), violations=error.problems
        ) from error
