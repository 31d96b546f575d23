"""Temporal's worker deployments: which build of the worker a workflow belongs to.

With a deployment workflows are pinned: each ends with the build that began it, as long as a worker
of it runs. Without one any worker takes any workflow, so a change hides behind `workflow.patched`.
Temporal refuses a behaviour of a single workflow where there is no deployment, so it is the
worker's, not the workflow's.
"""

from __future__ import annotations

import asyncio
import logging
from importlib import metadata

from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

log = logging.getLogger(__name__)
BUILD = f"volary-workflows-{metadata.version('volary-workflows')}"
AGAIN_S = 0.5
NOT_YET = (
    RPCStatusCode.NOT_FOUND,  # the worker has not polled yet
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.RESOURCE_EXHAUSTED,
    RPCStatusCode.DEADLINE_EXCEEDED,
)


def version_of(deployment: str, build_id: str) -> WorkerDeploymentVersion | None:
    """Return the version that a worker polls as, None where there is no deployment."""
    return WorkerDeploymentVersion(deployment, build_id) if deployment else None


def versioned(version: WorkerDeploymentVersion) -> WorkerDeploymentConfig:
    """Return what the SDK is told."""
    return WorkerDeploymentConfig(
        version,
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


async def made_current(client: Client, version: WorkerDeploymentVersion) -> None:
    """Give a version what begins from now on, as soon as a worker of it polls.

    Raises RPCError where Temporal forbids it: then `temporal worker deployment
    set-current-version` does the same.
    """
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace,
        deployment_name=version.deployment_name,
        build_id=version.build_id,
        identity=client.identity,
    )
    while True:
        try:
            await client.workflow_service.set_worker_deployment_current_version(request)
        except RPCError as error:
            if error.status not in NOT_YET:
                raise
            await asyncio.sleep(AGAIN_S)
        else:
            log.info("%s takes over", version.to_canonical_string())
            return
