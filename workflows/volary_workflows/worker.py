"""The Temporal worker: which workflows and activities it runs, and how it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Interceptor, Worker
from volary_kit.channels import Channels
from volary_kit.clock import Clock
from volary_kit.webhooks import Webhooks

from volary_workflows.attributes import KEYS
from volary_workflows.deployments import BUILD, versioned
from volary_workflows.experiment.activities import ExperimentActivities
from volary_workflows.experiment.workflow import ExperimentWorkflow
from volary_workflows.failures import CallInterceptor
from volary_workflows.holding import HoldWorkflow
from volary_workflows.identifiers import TASK_QUEUE
from volary_workflows.retrain.activities import RetrainActivities
from volary_workflows.retrain.compensation import CompensationActivities
from volary_workflows.retrain.workflow import RetrainWorkflow
from volary_workflows.rollout.activities import RolloutActivities
from volary_workflows.rollout.shadow_diffs import ShadowActivities
from volary_workflows.rollout.staging import StagingActivities
from volary_workflows.rollout.workflow import RolloutWorkflow

WORKFLOWS = (RolloutWorkflow, RetrainWorkflow, ExperimentWorkflow, HoldWorkflow)
POLLS = 2  # a frozen worker swallows a task by each poll that it has open
GRACE = timedelta(seconds=5)
STICKY = timedelta(seconds=2)  # after a kill another worker takes over this soon
HEARD_WITHIN = timedelta(seconds=1)  # a cancelled activity hears of it with its next heartbeat


def activities_of(channels: Channels, webhooks: Webhooks, clock: Clock) -> list[Callable[..., Any]]:
    """Return every activity, bound to the channels that it calls through."""
    rollout = RolloutActivities(channels, webhooks, clock)
    experiment = ExperimentActivities(channels)
    staging, retrain = StagingActivities(channels), RetrainActivities(channels)
    return [
        staging.stage_version,
        ShadowActivities(channels).report_shadow,
        rollout.notify,
        rollout.check_rollout,
        rollout.decide_approval,
        rollout.load_version,
        rollout.unload_version,
        rollout.set_traffic,
        rollout.read_traffic,
        rollout.judge_rollout,
        experiment.check_experiment,
        experiment.set_split,
        experiment.judge_experiment,
        retrain.read_training,
        retrain.pull_source,
        retrain.build_training_set,
        retrain.train,
        retrain.judge_gate,
        CompensationActivities(channels).abandon_operation,
    ]


def make_worker(
    client: Client,
    activities: Sequence[Callable[..., Any]],
    *,
    task_queue: str = TASK_QUEUE,
    max_activities: int = 100,
    interceptors: Sequence[Interceptor] = (),
    deployed_as: WorkerDeploymentVersion | None = None,
) -> Worker:
    """Return a worker of all workflows; a stop lets activities end within 5 s.

    With `deployed_as` Temporal gives it what belongs to that version, and nothing else.
    """
    return Worker(
        client,
        task_queue=task_queue,
        # without a build id the SDK hashes every loaded module, for seconds, on the event loop
        build_id=None if deployed_as else BUILD,
        deployment_config=versioned(deployed_as) if deployed_as else None,
        workflows=list(WORKFLOWS),
        activities=list(activities),
        interceptors=[CallInterceptor(), *interceptors],
        max_concurrent_activities=max_activities,
        max_concurrent_workflow_task_polls=POLLS,
        max_concurrent_activity_task_polls=POLLS,
        max_heartbeat_throttle_interval=HEARD_WITHIN,
        graceful_shutdown_timeout=GRACE,
        sticky_queue_schedule_to_start_timeout=STICKY,
    )


async def register_attributes(client: Client) -> None:
    """Make the attributes known to the namespace; those that are there already are left alone.

    A workflow that sets an attribute which the namespace does not know stands still, so this
    comes before a worker polls. Raises RPCError where Temporal does not answer or forbids it: then
    `temporal operator search-attribute create --name ... --type Keyword` does the same.
    """
    for key in KEYS:
        request = AddSearchAttributesRequest(
            namespace=client.namespace,
            search_attributes={key.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD},
        )
        try:
            await client.operator_service.add_search_attributes(request)
        except RPCError as error:
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise
