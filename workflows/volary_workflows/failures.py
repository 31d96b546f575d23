"""Errors of calls as Temporal failures: the reason becomes the type, retry only what may mend."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)
from volary_kit.calls import DEFAULT_PROJECT, act_for
from volary_kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unimplemented,
    VolaryError,
)

from volary_workflows.liveness import BEAT_S
from volary_workflows.principals import PrincipalInbound, principal_in

FINAL = (
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    PermissionDenied,
    Unauthenticated,
    Unimplemented,
)
FINAL_REASONS = frozenset({"STALE_GENERATION"})
MAY_MEND = frozenset({"VERSION_NOT_READY"})  # a replica that restarts loads it again by itself


def failure_of(error: VolaryError) -> ApplicationError:
    """Return the failure that a workflow sees: type = reason, details = metadata."""
    is_final = error.reason in FINAL_REASONS or (
        isinstance(error, FINAL) and error.reason not in MAY_MEND
    )
    return ApplicationError(
        error.message, error.metadata, type=error.reason, non_retryable=is_final
    )


class CallInterceptor(Interceptor):
    """Run each activity in the project of its message, on behalf of who began the workflow.

    What its calls raise is translated, and Temporal hears every second that it still runs.
    """

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the next interceptor."""
        return _Calls(next)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002, ARG002
    ) -> type[WorkflowInboundInterceptor]:
        """Return what sends the principal along with each activity."""
        return PrincipalInbound


class _Calls(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        project = project_of(input.args[0]) if input.args else DEFAULT_PROJECT
        key = f"{activity.info().workflow_run_id}/{activity.info().activity_id}"
        request_key = str(uuid.uuid5(uuid.NAMESPACE_OID, key))
        with act_for(project, principal_in(input.headers), request_key):
            beating = asyncio.create_task(_beat())
            try:
                return await super().execute_activity(input)
            except VolaryError as error:
                raise failure_of(error) from error
            finally:
                beating.cancel()


async def _beat() -> None:
    """Say that this worker lives for as long as the activity runs: a lost one is missed soon.

    One that runs within its workflow's task is missed with that.
    """
    while not activity.info().is_local:
        activity.heartbeat()
        await asyncio.sleep(BEAT_S)


def project_of(message: object) -> str:
    """Return the project that a message names, itself or by its subject or specification."""
    for owner in (message, getattr(message, "subject", None), getattr(message, "spec", None)):
        project = getattr(owner, "project", None)
        if isinstance(project, str):
            return project
    return DEFAULT_PROJECT
