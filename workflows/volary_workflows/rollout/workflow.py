"""The workflow that carries one version into production, or back.

Deterministic: it decides on what activities return and on time alone. Whatever fails after the
first write of traffic ends in a rollback; whoever else writes the traffic fences it off.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from volary_workflows.judge.inputs import FAIL, INCOMPLETE_EVIDENCE, PASS, TINY_REGRESSION
    from volary_workflows.rollout.commands import Commanded
    from volary_workflows.rollout.messages import (
        WHOLE,
        ApprovalDecision,
        JudgeTask,
        Look,
        Preflight,
        Progress,
        Rollout,
        RolloutStatus,
        State,
        Subject,
        TrafficChange,
        TrafficState,
        TrafficStep,
        Transition,
    )
    from volary_workflows.rollout.specification import SpecificationError, require_sound

RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    backoff_coefficient=1.5,
    maximum_interval=timedelta(seconds=10),
)
ATTEMPT = timedelta(seconds=15)  # how long a killed worker may go unnoticed
WAITING = {"load_version": timedelta(minutes=2), "set_traffic": timedelta(minutes=1)}
HEARTBEAT = timedelta(seconds=12)  # the longest single call of the two takes 10 s
PATIENCE = timedelta(minutes=10)  # how long a forward step tries before the rollout turns back
LEAST_POLL_S, MOST_POLL_S = 0.25, 300.0
DOUBT_S, DOUBT_LOOKS = 5.0, 3  # records are late by a second or two, lost ones for ever
APPROVED = "APPROVAL_STATE_APPROVED"
STALE = "STALE_GENERATION"
BREAK_GLASS, BRAKE = "BREAK_GLASS", "BRAKE"


class Ended(Exception):
    """The rollout ends here, in `state`, because of `reason`."""

    def __init__(self, state: State, reason: str, *, fenced: bool = False) -> None:
        super().__init__(state, reason)
        self.state = state
        self.reason = reason
        self.fenced = fenced


@workflow.defn(name="RolloutWorkflow")
class RolloutWorkflow(Commanded):
    """One rollout of one model: `Rollout` in, `RolloutStatus` out."""

    @workflow.init
    def __init__(self, rollout: Rollout) -> None:
        self._spec = rollout.spec
        self._progress = rollout.progress or Progress()

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
                await self._turn_back(Ended(State.ROLLED_BACK, f"failed: {_cause_of(error)}"))
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.status()

    def _begin(self) -> None:
        progress = self._progress
        if progress.rollout:
            return
        seed = workflow.info().first_execution_run_id
        progress.request_seed = seed
        # run ids begin with the time: only the end tells two rollouts of a minute apart
        progress.rollout = f"{self._spec.model}-v{self._spec.candidate}-{seed[-8:]}"
        self._enter(State.PENDING, self._spec.reason)

    async def _go_on(self) -> None:
        stages: list[Callable[[], Awaitable[None]]] = [self._validate, self._approve, self._load]
        if self._spec.shadow is not None:
            stages.append(self._shadow)
        stages += [self._step(i) for i in range(len(self._spec.steps))]
        stages += [self._bake, self._promote]
        while self._progress.stage < len(stages):
            await stages[self._progress.stage]()
            self._progress.stage += 1
            self._progress.stage_began_s = 0.0

    # --- stages, in order -----------------------------------------------------------------

    async def _validate(self) -> None:
        self._enter(State.VALIDATING)
        try:
            require_sound(self._spec)
        except SpecificationError as error:
            raise self._invalid(error.problems) from error
        found = await self._forward("check_rollout", self._spec, Preflight)
        if found.problems:
            raise self._invalid(dict(text.split(": ", 1) for text in found.problems))
        progress = self._progress
        progress.digest, progress.baseline = found.digest, found.baseline
        progress.generation, progress.thresholds_us = found.generation, found.thresholds_us
        progress.approved_by = found.approved_by if found.approval == APPROVED else ""

    def _invalid(self, problems: dict[str, str]) -> ApplicationError:
        text = "; ".join(f"{field}: {what}" for field, what in problems.items())
        self._enter(State.FAILED, text)
        return ApplicationError(text, problems, type="INVALID_SPECIFICATION", non_retryable=True)

    async def _approve(self) -> None:
        progress, policy = self._progress, self._spec.approval
        if self._is_approved_by_person():
            return
        if policy.mode == "none":
            progress.approved_by = "policy/none"
        else:
            progress.approved_by = ""
            self._enter(State.AWAITING_APPROVAL)
            await self._await_decision(policy.expire_s)
        await self._decide(is_approved=True, by=progress.approved_by, comment="")

    def _is_approved_by_person(self) -> bool:
        by, who = self._progress.approved_by, self._spec.approval.who
        return bool(by) and not by.startswith("policy/") and (not who or by in who)

    async def _await_decision(self, expire_s: float) -> None:
        progress = self._progress
        try:
            await workflow.wait_condition(
                lambda: bool(progress.approved_by or progress.rejected_by or progress.stop),
                timeout=timedelta(seconds=expire_s),
            )
        except TimeoutError:
            raise Ended(State.ABORTED, "approval_expired") from None
        self._heed_stop()
        if progress.rejected_by:
            await self._decide(is_approved=False, by=progress.rejected_by, comment="")
            raise Ended(State.ABORTED, f"rejected by {progress.rejected_by}")

    async def _decide(self, *, is_approved: bool, by: str, comment: str) -> None:
        decision = ApprovalDecision(
            self._subject(), is_approved, by, comment, self._request_id("approval")
        )
        await self._forward("decide_approval", decision, None)

    async def _load(self) -> None:
        self._enter(State.LOADING)
        self._progress.is_loaded = True
        await self._forward("load_version", self._subject(), int)

    async def _shadow(self) -> None:
        stage = self._spec.shadow
        if stage is None or not self._progress.baseline:
            return
        self._enter(State.SHADOW)
        await self._write("shadow", weight=0, shadow=round(stage.fraction * WHOLE))
        await self._watch("shadow", stage.min_duration_s, stage.min_requests, needs_pass=False)

    def _step(self, i: int) -> Callable[[], Awaitable[None]]:
        async def take() -> None:
            if not self._progress.baseline:
                return  # nothing serves yet: there is nobody to share with
            step = self._spec.steps[i]
            name = "canary" if i == 0 else f"{step.weight / 100:g}"
            self._enter(State.CANARY if i == 0 else State.PROGRESSING, name)
            await self._write(name, weight=step.weight)
            await self._watch(name, step.min_duration_s, step.min_requests, needs_pass=True)

        return take

    async def _bake(self) -> None:
        self._enter(State.BAKING)
        await self._write("bake", weight=WHOLE)
        await self._watch("bake", self._spec.bake_s, 0, needs_pass=False)

    async def _promote(self) -> None:
        self._heed_stop()
        self._progress.is_closing = True
        await self._write("promote", weight=WHOLE, cause="PROMOTE", production=self._spec.candidate)
        self._enter(State.PROMOTED)

    # --- watching a stage ------------------------------------------------------------------

    async def _watch(self, step: str, due_s: float, requests: int, *, needs_pass: bool) -> None:
        """Look until the stage has its evidence; raise Ended when it never will.

        Judged while paused, too: a pause holds the weight, not the brake.
        """
        progress, spec = self._progress, self._spec
        progress.stage_began_s = progress.stage_began_s or _now_s()
        poll_s = spec.poll_s or min(max(due_s / 60, LEAST_POLL_S), MOST_POLL_S)
        skips = progress.skips
        while True:
            left_s = due_s - (_now_s() - progress.stage_began_s)
            await self._pass_time(min(poll_s, left_s) if left_s > 0 else poll_s, skips)
            elapsed_s = _now_s() - progress.stage_began_s
            await self._look(step, is_due=elapsed_s >= due_s)
            if progress.skips > skips:
                return
            if progress.paused:
                continue
            if needs_pass and self._is_doubted(max(DOUBT_S, DOUBT_LOOKS * poll_s)):
                await self._renew(step)
            if elapsed_s >= due_s and self._is_done(requests, needs_pass=needs_pass):
                return
            if elapsed_s >= due_s * (1 + spec.max_extensions):
                raise Ended(State.ROLLED_BACK, "evidence_timeout")

    async def _pass_time(self, seconds: float, skips: int) -> None:
        progress = self._progress
        if workflow.info().is_continue_as_new_suggested():
            await workflow.wait_condition(workflow.all_handlers_finished)
            workflow.continue_as_new(Rollout(self._spec, progress))
        try:
            await workflow.wait_condition(
                lambda: bool(progress.stop) or progress.skips > skips,
                timeout=timedelta(seconds=seconds),
            )
        except TimeoutError:
            return
        self._heed_stop()

    async def _look(self, step: str, *, is_due: bool) -> None:
        progress = self._progress
        progress.looks += 1
        task = JudgeTask(
            subject=self._subject(),
            baseline=progress.baseline,
            rollout=progress.rollout,
            step=step,
            guards=self._spec.guards,
            written=progress.written,
            thresholds_us=progress.thresholds_us,
            sticky=bool(self._spec.sticky_by),
            acknowledged=progress.acknowledged,
            is_due=is_due,
            look=progress.looks,
            last=progress.look,
        )
        look = await self._forward("judge_rollout", task, Look)
        if look.evaluation and look.evaluation != progress.look.evaluation:
            progress.evaluations.append(look.evaluation)
        progress.look = look
        if look.generation > progress.generation:
            await self._explain_fence()
        if look.verdict == FAIL:
            raise Ended(State.ROLLED_BACK, "; ".join(look.reason_codes))
        if TINY_REGRESSION in look.reason_codes and not progress.paused:
            progress.paused = TINY_REGRESSION

    def _is_doubted(self, patience_s: float) -> bool:
        """Say whether records of the present interval have been missing for longer than a flush."""
        progress = self._progress
        if INCOMPLETE_EVIDENCE not in progress.look.reason_codes:
            progress.doubted_s = 0.0
            return False
        progress.doubted_s = progress.doubted_s or _now_s()
        return _now_s() - progress.doubted_s >= patience_s

    def _is_done(self, requests: int, *, needs_pass: bool) -> bool:
        look = self._progress.look
        if look.calls < requests:
            return False
        if look.verdict == PASS or not needs_pass:
            return True
        if self._spec.on_inconclusive == "rollback":
            raise Ended(State.ROLLED_BACK, "inconclusive: " + "; ".join(look.reason_codes))
        return False

    # --- traffic ---------------------------------------------------------------------------

    async def _write(
        self, step: str, *, weight: int, shadow: int = 0, cause: str = "STEP", production: int = 0
    ) -> None:
        """Write a step of the traffic once; what continued as new finds it written."""
        written = self._progress.written
        if not written or written[-1].step != step:
            await self._put(step, weight, shadow, cause, production)

    async def _renew(self, step: str) -> None:
        """Begin a new interval of the same step: what is lost of the old one stays lost."""
        self._progress.doubted_s = 0.0
        last = self._progress.written[-1]
        await self._put(step, last.weight, last.shadow, "STEP", 0)

    async def _put(self, step: str, weight: int, shadow: int, cause: str, production: int) -> None:
        self._heed_stop()
        progress = self._progress
        change = self._change(step, weight, shadow, cause, production)
        progress.is_exposed = True  # from here on a lost reply may hide a write that was made
        try:
            after = await self._call("set_traffic", change, TrafficState, PATIENCE)
        except ActivityError as error:
            if _type_of(error) != STALE:
                raise
            await self._explain_fence()
            raise
        self._note(step, after.generation, weight, shadow)

    def _note(self, step: str, generation: int, weight: int, shadow: int) -> None:
        self._progress.generation = generation
        self._progress.written.append(TrafficStep(step, generation, weight, shadow))

    def _change(
        self, step: str, weight: int, shadow: int, cause: str, production: int
    ) -> TrafficChange:
        progress = self._progress
        return TrafficChange(
            subject=self._subject(),
            baseline=progress.baseline,
            weight=weight,
            shadow=shadow,
            step=step,
            rollout=progress.rollout,
            cause=cause,
            expected_generation=progress.generation,
            request_id=self._request_id(f"traffic/{step}/{progress.generation}"),
            sticky_by=self._spec.sticky_by,
            production=production,
            reason=self._reason() or self._spec.reason,
        )

    async def _explain_fence(self) -> None:
        """Raise Ended when somebody else wrote the traffic; adopt a write that was our own."""
        seen = await self._call("read_traffic", self._subject(), TrafficState, None)
        if seen.generation <= self._progress.generation:
            return
        if seen.cause == BRAKE:  # a machine saw harm: going back is what it asks for
            self._progress.generation = seen.generation
            raise Ended(State.ROLLED_BACK, "brake")
        if seen.rollout == self._progress.rollout and seen.cause != BREAK_GLASS:
            self._progress.generation = seen.generation
            return
        reason = "break_glass" if seen.cause == BREAK_GLASS else "traffic_changed_by_others"
        raise Ended(State.ROLLED_BACK, reason, fenced=True)

    async def _turn_back(self, end: Ended) -> None:
        """Give all traffic back to the baseline unless fenced off, then let the candidate go."""
        if not self._progress.is_loaded:
            is_failure = end.state == State.ROLLED_BACK
            self._enter(State.FAILED if is_failure else end.state, end.reason)
            return
        self._enter(State.ROLLING_BACK, end.reason)
        while not end.fenced:
            try:
                await self._restore()
                break
            except Ended as fence:
                end = replace_reason(end, fence)
        await self._call("unload_version", self._subject(), bool, None)
        is_failure = end.state == State.ROLLED_BACK and not self._progress.is_exposed
        self._enter(State.FAILED if is_failure else end.state, end.reason)

    async def _restore(self) -> None:
        """Write the baseline back, as often as it takes; raise Ended when fenced off."""
        progress = self._progress
        if not progress.is_exposed:
            return
        await self._explain_fence()
        if not progress.baseline:
            return  # it was the first version: there is nothing to go back to
        change = self._change("rollback", 0, 0, "ROLLBACK", progress.baseline)
        try:
            after = await self._call("set_traffic", change, TrafficState, None)
        except ActivityError as error:
            if _type_of(error) != STALE:
                raise
            await self._restore()
            return
        self._note("rollback", after.generation, 0, 0)

    # --- activities ------------------------------------------------------------------------

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
            heartbeat_timeout=HEARTBEAT if name in WAITING else None,
            retry_policy=RETRY,
        )

    def _request_id(self, step: str) -> str:
        return str(uuid.uuid5(uuid.UUID(self._progress.request_seed), step))

    def _subject(self) -> Subject:
        spec = self._spec
        return Subject(spec.project, spec.model, spec.candidate, self._progress.digest)

    def _heed_stop(self) -> None:
        progress = self._progress
        if progress.stop:
            raise Ended(State(progress.stop), progress.stop_reason)

    def _enter(self, state: State, reason: str = "") -> None:
        progress = self._progress
        last = progress.history[-1] if progress.history else None
        if progress.stage_began_s and last is not None and last.state == state:
            return  # continued as new in the middle of it
        progress.state = state
        progress.history.append(Transition(state, _now_s(), reason))


def replace_reason(end: Ended, fence: Ended) -> Ended:
    """Return the end as the fence has it, keeping ABORTED and SUPERSEDED."""
    state = end.state if end.state in (State.ABORTED, State.SUPERSEDED) else fence.state
    reason = fence.reason if fence.fenced else end.reason
    return Ended(state, reason, fenced=fence.fenced)


def _now_s() -> float:
    return workflow.now().timestamp()


def _cause_of(error: BaseException) -> str:
    return str(error.__cause__ or error)


def _type_of(error: ActivityError) -> str:
    return (error.cause.type or "") if isinstance(error.cause, ApplicationError) else ""
