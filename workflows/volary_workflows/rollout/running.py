"""What every part of the rollout's workflow stands on: its state, its activities, its end."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from volary_workflows.attributes import searchable
    from volary_workflows.calling import Calling, Ended, cause_of, now_s
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

NOTICE_PATIENCE = timedelta(minutes=2)  # nobody waits for a web hook that is down
TOLD = (*ENDS, State.AWAITING_APPROVAL, State.ROLLING_BACK)
SECOND_SHAPE = "staged-and-searchable"
SHORT_RUNS = "short-runs"


class Running(Calling[Progress]):
    """The state of a rollout, and how it changes."""

    _spec: RolloutSpec
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

    def _enter(self, state: str, reason: str = "") -> None:
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

    def _tell(self, state: str, reason: str) -> None:
        for hook in self._spec.notify:
            if state in (hook.on or TOLD):
                self._notices.append(asyncio.create_task(self._notify(hook, state, reason)))

    async def _notify(self, hook: Notification, state: str, reason: str) -> None:
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
