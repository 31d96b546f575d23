"""What rollouts and experiments stand on: activities that a stop may interrupt, and an end."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from volary_workflows.liveness import HEARTBEAT

RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=1.5,
    maximum_interval=timedelta(seconds=10),
)
ATTEMPT = timedelta(seconds=15)
WAITING = {
    "load_version": timedelta(minutes=2),
    "stage_version": timedelta(minutes=2),
    "set_traffic": timedelta(minutes=1),
    "set_split": timedelta(minutes=1),
}
PATIENCE = timedelta(minutes=10)  # how long a forward step tries before the workflow turns back
# Nothing of a workflow's task is stored before it ends, and one whose worker is lost is given to
# another after 10 s: what runs within the task gets little time, and one attempt.
HERE = timedelta(seconds=1)
ONCE = RetryPolicy(maximum_attempts=1)


class Ended(Exception):
    """The workflow ends here, in `state`; when it `is_fenced` the traffic is not its own."""

    def __init__(self, state: str, reason: str, *, is_fenced: bool = False) -> None:
        super().__init__(state, reason)
        self.state = state
        self.reason = reason
        self.is_fenced = is_fenced


class Stoppable(Protocol):
    """What a workflow remembers of itself: its first run, why it is to stop, what it was told."""

    request_seed: str
    stop: str
    heard: list[str]


ProgressT = TypeVar("ProgressT", bound=Stoppable)


class Calling(Generic[ProgressT]):
    """How a workflow calls activities, and hears of a stop meanwhile."""

    _progress: ProgressT

    def _heed_stop(self) -> None:
        """Raise Ended once somebody has asked for a stop."""
        raise NotImplementedError

    async def _forward(self, name: str, message: Any, result: type | None) -> Any:
        """Run an activity that a stop may interrupt."""
        self._heed_stop()
        running = asyncio.ensure_future(self._call(name, message, result, PATIENCE))
        await workflow.wait_condition(lambda: running.done() or bool(self._progress.stop))
        if not running.done():
            running.cancel()
        self._heed_stop()
        return await running

    async def _call(
        self, name: str, message: Any, result: type | None, patience: timedelta | None
    ) -> Any:
        return await workflow.execute_activity(
            name,
            message,
            result_type=result,
            start_to_close_timeout=WAITING.get(name, ATTEMPT),
            schedule_to_close_timeout=patience,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=RETRY,
        )

    def _has_heard(self, word: str, request_id: str) -> bool:
        """Say whether the request had its effect: its answer may have been lost."""
        return bool(request_id) and f"{word}/{request_id}" in self._progress.heard

    def _hear(self, word: str, request_id: str) -> bool:
        """Return whether the request is new, and remember it."""
        if self._has_heard(word, request_id):
            return False
        if request_id:
            self._progress.heard = [*self._progress.heard, f"{word}/{request_id}"]
        return True

    async def _call_here(self, name: str, message: Any, result: type | None) -> Any:
        """Run an activity once, within the workflow's own task and before that is stored.

        It saves two trips through Temporal and what they store; should the worker be lost
        meanwhile, it runs again, so only what may be repeated runs like this.
        """
        return await workflow.execute_local_activity(
            name,
            message,
            result_type=result,
            schedule_to_close_timeout=HERE,
            retry_policy=ONCE,
        )

    def _request_id(self, step: str) -> str:
        return str(uuid.uuid5(uuid.UUID(self._progress.request_seed), step))


def now_s() -> float:
    """Return the workflow's time in seconds since the epoch."""
    return workflow.now().timestamp()


def cause_of(error: BaseException) -> str:
    """Return the text of what an activity failed with."""
    return str(error.__cause__ or error)


def type_of(error: ActivityError) -> str:
    """Return the reason that an activity failed with, empty when it has none."""
    return (error.cause.type or "") if isinstance(error.cause, ApplicationError) else ""
