"""The Temporal worker: which workflows and activities it runs, and how it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib import metadata
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker
from volary_kit.channels import Channels

from volary_workflows.failures import CallInterceptor
from volary_workflows.identifiers import TASK_QUEUE
from volary_workflows.retrain.activities import RetrainActivities
from volary_workflows.retrain.workflow import RetrainWorkflow
from volary_workflows.rollout.activities import RolloutActivities
from volary_workflows.rollout.workflow import RolloutWorkflow

WORKFLOWS = (RolloutWorkflow, RetrainWorkflow)
GRACE = timedelta(seconds=5)
STICKY = timedelta(seconds=2)  # after a kill another worker takes over this soon
HEARD_WITHIN = timedelta(seconds=1)  # a cancelled activity hears of it with its next heartbeat


def activities_of(channels: Channels) -> list[Callable[..., Any]]:
    """Return every activity, bound to the channels that it calls through."""
    rollout, retrain = RolloutActivities(channels), RetrainActivities(channels)
    return [
        rollout.check_rollout,
        rollout.decide_approval,
        rollout.load_version,
        rollout.unload_version,
        rollout.set_traffic,
        rollout.read_traffic,
        rollout.judge_rollout,
        retrain.read_training,
        retrain.pull_source,
        retrain.build_training_set,
        retrain.train,
        retrain.judge_gate,
    ]


def make_worker(
    client: Client,
    activities: Sequence[Callable[..., Any]],
    *,
    task_queue: str = TASK_QUEUE,
    max_activities: int = 100,
) -> Worker:
    """Return a worker of all workflows; a stop lets activities end within 5 s."""
    return Worker(
        client,
        task_queue=task_queue,
        # without one the SDK hashes every loaded module, for seconds, on the event loop
        build_id=f"volary-workflows-{metadata.version('volary-workflows')}",
        workflows=list(WORKFLOWS),
        activities=list(activities),
        interceptors=[CallInterceptor()],
        max_concurrent_activities=max_activities,
        max_heartbeat_throttle_interval=HEARD_WITHIN,
        graceful_shutdown_timeout=GRACE,
        sticky_queue_schedule_to_start_timeout=STICKY,
    )
