"""The workflow that carries one version into production, or back.

Deterministic: it decides on what activities return and on time alone. Whatever fails after the
first write of traffic ends in a rollback; whoever else writes the traffic fences it off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from volary_workflows.calling import Ended, cause_of
    from volary_workflows.rollout.admission import Admission
    from volary_workflows.rollout.commands import Commanded
    from volary_workflows.rollout.messages import WHOLE, Rollout, RolloutStatus, State
    from volary_workflows.rollout.preparing import Preparing
    from volary_workflows.rollout.watching import Watching

Stage = Callable[[], Awaitable[None]]
MICROS = 1_000_000


@workflow.defn(name="RolloutWorkflow")
class RolloutWorkflow(Commanded, Admission, Preparing, Watching):
    """One rollout of one model: `Rollout` in, `RolloutStatus` out."""

    @workflow.init
    def __init__(self, rollout: Rollout) -> None:
        self._init(rollout)

    @workflow.run
    async def run(self, rollout: Rollout) -> RolloutStatus:  # noqa: ARG002 - read in __init__
        """Go through the stages; end promoted, or back where it began."""
        self._begin()
        try:
            await self._go_on()
        except Ended as end:
            await self._turn_back(end)
        except (ActivityError, asyncio.CancelledError) as error:
            if is_cancelled_exception(error):
                await self._turn_back(Ended(State.ABORTED, "cancelled"))
            else:
                await self._turn_back(Ended(State.ROLLED_BACK, f"failed: {cause_of(error)}"))
        await self._finish()
        return self.status()

    def _begin(self) -> None:
        progress = self._progress
        if progress.rollout:
            return
        seed = workflow.info().first_execution_run_id
        progress.request_seed = seed
        # of one model one runs at a time, so these are in order
        progress.began_us = int(workflow.info().workflow_start_time.timestamp() * MICROS)
        # run ids begin with the time: only the end tells two rollouts of a minute apart
        progress.rollout = f"{self._spec.model}-v{self._spec.candidate}-{seed[-8:]}"
        self._enter(State.PENDING, self._spec.reason)

    async def _go_on(self) -> None:
        """Take the stages in order; their number is kept when it continues as new."""
        stages: list[Stage] = [self._validate, self._approve, self._prepare]
        if self._spec.shadow is not None:
            stages.append(self._shadow)
        stages += [self._step(i) for i in range(len(self._spec.steps))]
        stages += [self._bake, self._promote]
        progress = self._progress
        while progress.stage < len(stages):
            await stages[progress.stage]()
            progress.stage += 1
            progress.stage_began_s = progress.held_s = 0.0

    async def _shadow(self) -> None:
        stage = self._spec.shadow
        if stage is None or not self._progress.baseline:
            return
        await self._await_thaw()
        self._enter(State.SHADOW)
        await self._write("shadow", weight=0, shadow=round(stage.fraction * WHOLE))
        await self._watch("shadow", stage.min_duration_s, stage.min_requests, needs_pass=False)
        await self._report_shadow()

    def _step(self, i: int) -> Stage:
        async def take() -> None:
            if not self._progress.baseline:
                return  # nothing serves yet: there is nobody to share with
            step = self._spec.steps[i]
            name = "canary" if i == 0 else f"{step.weight / 100:g}"
            await self._await_thaw()
            self._enter(State.CANARY if i == 0 else State.PROGRESSING, name)
            await self._write(name, weight=step.weight)
            await self._watch(name, step.min_duration_s, step.min_requests, needs_pass=True)

        return take

    async def _bake(self) -> None:
        await self._await_thaw()
        self._enter(State.BAKING)
        await self._write("bake", weight=WHOLE)
        await self._watch("bake", self._spec.bake_s, 0, needs_pass=False)

    async def _promote(self) -> None:
        self._heed_stop()
        self._progress.is_closing = True
        await self._write("promote", weight=WHOLE, cause="PROMOTE", production=self._spec.candidate)
        self._enter(State.PROMOTED)
