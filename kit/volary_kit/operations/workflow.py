"""The one Temporal workflow behind every long-running operation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, is_cancelled_exception

RUN, CLOSE = "run_operation", "close_operation"
HEARTBEAT_S = 10.0  # a worker that is killed is noticed after this long
CLOSE_S = 30.0


@dataclass(frozen=True)
class OperationOrder:
    """Which operation to run: its row's id, the longest it may take, how often to try."""

    id: str
    timeout_s: float
    attempts: int


@dataclass(frozen=True)
class OperationEnd:
    """An operation whose run left no result, and whether that is because it was cancelled."""

    id: str
    was_cancelled: bool


@workflow.defn(name="Operation")
class OperationWorkflow:
    """Run the handler until the row says that it has ended."""

    @workflow.run
    async def run(self, order: OperationOrder) -> str:
        """Return the final state of the row."""
        try:
            return await workflow.execute_activity(
                RUN,
                order,
                result_type=str,
                start_to_close_timeout=timedelta(seconds=order.timeout_s),
                heartbeat_timeout=timedelta(seconds=HEARTBEAT_S),
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(seconds=1),
                    maximum_interval=timedelta(seconds=30),
                    maximum_attempts=order.attempts,
                ),
            )
        except (ActivityError, asyncio.CancelledError) as error:
            end = OperationEnd(order.id, is_cancelled_exception(error))
        return await workflow.execute_activity(
            CLOSE, end, result_type=str, start_to_close_timeout=timedelta(seconds=CLOSE_S)
        )
