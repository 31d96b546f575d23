"""What every part of the rollout's workflow stands on: its state, its activities, its end."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from volary_workflows.attributes import searchable
    from volary_workflows.liveness import HEARTBEAT
    from volary_workflows.rollout.messages import (
        ENDS,
        Notification,
        Progress,
        Rollout,
        RolloutSpec,
        State,
        Transition,
    )
    from volary_workflows.rollout.tasks import Notice, Subject

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
}
PATIENCE = timedelta(minutes=10)  # how long a forward step tries before the rollout turns back
NOTICE_PATIENCE = timedelta(minutes=2)  # nobody waits for a web hook that is down
TOLD = (*ENDS, State.AWAITING_APPROVAL, State.ROLLING_BACK)
SECOND_SHAPE = "staged-and-searchable"
SHORT_RUNS = "short-runs"


class Ended(Exception):
    """The rollout ends here, in `state`, because of `reason`."""

    def __init__(self, state: State, reason: str, *, fenced: bool = False) -> None:
        super().__init__(state, reason)
        self.state = state
        self.reason = reason
        self.fenced = fenced


class Running:
    """The state of a rollout, and how it calls activities and changes state."""

    _spec: RolloutSpec
    _progress: Progress
    _notices: list[asyncio.Task[None]]
    _looks_a_run: int
    _looks: int  # of this run

    def _init(self, rollout: Rollout) -> None:
        self._spec = rollout.spec
        self._progress = rollout.progress or Progress()
        self._notices = []
        self._looks_a_run = rollout.looks_a_run
        self._looks = 0

    def _is_of_first_shape(self) -> bool:
        """Say whether a worker that knew neither staging nor search attributes began this run."""
        return not workflow.patched(SECOND_SHAPE)

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

    def _request_id(self, step: str) -> str:
        return str(uuid.uuid5(uuid.UUID(self._progress.request_seed), step))

    def _subject(self) -> Subject:
        spec = self._spec
        progress = self._progress
        return Subject(spec.project, spec.model, spec.candidate, progress.digest, progress.began_us)

    def _heed_stop(self) -> None:
        progress = self._progress
        if progress.stop:
            raise Ended(State(progress.stop), progress.stop_reason)

    def _reason(self) -> str:
        return self._progress.history[-1].reason if self._progress.history else ""

    def _enter(self, state: State, reason: str = "") -> None:
        progress = self._progress
        last = progress.history[-1] if progress.history else None
        if progress.stage_began_s and last is not None and last.state == state:
            return  # continued as new in the middle of it
        progress.state = state
        progress.history.append(Transition(state, now_s(), reason))
        self._show()
        self._tell(state, reason)

    def _show(self) -> None:
        """Let Temporal's lists be filtered by where the rollout is."""
        if not self._is_of_first_shape():
            spec = self._spec
            workflow.upsert_search_attributes(
                searchable(spec.project, spec.model, self._progress.state)
            )

    # --- web hooks: told in the background, heard or not -----------------------------------

    def _tell(self, state: State, reason: str) -> None:
        for hook in self._spec.notify:
            if state in (hook.on or TOLD):
                self._notices.append(asyncio.create_task(self._notify(hook, state, reason)))

    async def _notify(self, hook: Notification, state: State, reason: str) -> None:
        spec, progress = self._spec, self._progress
        notice = Notice(
            url=hook.url,
            id=self._request_id(f"notice/{len(progress.history)}/{hook.url}"),
            rollout=progress.rollout,
            project=spec.project,
            model=spec.model,
            candidate=spec.candidate,
            baseline=progress.baseline,
            state=state,
            reason=reason,
            at_s=now_s(),
        )
        try:
            await self._call("notify", notice, None, NOTICE_PATIENCE)
        except ActivityError as error:
            workflow.logger.warning("%s was not told of %s: %s", hook.url, state, cause_of(error))

    async def _finish(self) -> None:
        """Return when nobody waits for an answer any more and every web hook was tried."""
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._notices:
            await workflow.wait(self._notices)


def now_s() -> float:
    """Return the workflow's time in seconds since the epoch."""
    return workflow.now().timestamp()


def cause_of(error: BaseException) -> str:
    """Return the text of what an activity failed with."""
    return str(error.__cause__ or error)


def type_of(error: ActivityError) -> str:
    """Return the reason that an activity failed with, empty when it has none."""
    return (error.cause.type or "") if isinstance(error.cause, ApplicationError) else ""
