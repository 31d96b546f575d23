"""Watching a stage: look until it has its evidence, hold it while people or a calendar say so."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from volary_workflows.calling import Ended, cause_of, now_s
    from volary_workflows.judge.inputs import FAIL, INCOMPLETE_EVIDENCE, PASS, PAUSING
    from volary_workflows.rollout.freezing import frozen_until
    from volary_workflows.rollout.messages import Look, Rollout, ShadowDiff, State
    from volary_workflows.rollout.running import SHORT_RUNS
    from volary_workflows.rollout.tasks import JudgeTask, ShadowTask
    from volary_workflows.rollout.traffic import TrafficWrites

LEAST_POLL_S, MOST_POLL_S = 0.25, 300.0
DOUBT_S, DOUBT_LOOKS = 5.0, 3  # records are late by a second or two, lost ones for ever
REPORT_PATIENCE = timedelta(seconds=20)  # a report is for people: nothing waits longer for it
BEFORE_IT_PASSED = (State.CANARY, State.PROGRESSING)


class Watching(TrafficWrites):
    """The looks of the judge and what follows from them."""

    async def _watch(self, step: str, due_s: float, requests: int, *, needs_pass: bool) -> None:
        """Look until the stage has its evidence; raise Ended when it never will.

        Judged while held, too: a pause or a freeze holds the weight, not the brake. Held time
        does not count towards giving up.
        """
        progress, spec = self._progress, self._spec
        progress.stage_began_s = progress.stage_began_s or now_s()
        poll_s = spec.poll_s or min(max(due_s / 60, LEAST_POLL_S), MOST_POLL_S)
        skips = progress.skips
        while True:
            looked_s = now_s()
            left_s = due_s - (looked_s - progress.stage_began_s)
            await self._pass_time(min(poll_s, left_s) if left_s > 0 else poll_s, skips)
            elapsed_s = now_s() - progress.stage_began_s
            await self._look(step, is_due=elapsed_s >= due_s)
            if progress.skips > skips:
                return
            if self._is_held():
                progress.held_s += now_s() - looked_s
                continue
            if needs_pass and self._is_doubted(max(DOUBT_S, DOUBT_LOOKS * poll_s)):
                await self._renew(step)
            if elapsed_s >= due_s and self._is_done(requests, needs_pass=needs_pass):
                return
            if elapsed_s - progress.held_s >= due_s * (1 + spec.max_extensions):
                raise Ended(State.ROLLED_BACK, "evidence_timeout")

    def _is_held(self) -> bool:
        return bool(self._progress.paused) or frozen_until(self._spec.freeze, now_s()) > 0

    async def _await_thaw(self) -> None:
        """Wait for the end of a freeze before the first write, unless somebody skips the wait.

        Later stages are held by `_watch`, which goes on judging meanwhile.
        """
        progress = self._progress
        if progress.written:
            return
        skips = progress.skips
        while (until_s := frozen_until(self._spec.freeze, now_s())) and progress.skips == skips:
            await self._pass_time(until_s - now_s(), skips)

    async def _pass_time(self, seconds: float, skips: int) -> None:
        progress = self._progress
        if self._is_long():
            await self._finish()
            if progress.skips == skips and not progress.stop:  # what was said meanwhile comes first
                workflow.continue_as_new(Rollout(self._spec, progress, self._looks_a_run))
        try:
            await workflow.wait_condition(
                lambda: bool(progress.stop) or progress.skips > skips,
                timeout=timedelta(seconds=seconds),
            )
        except TimeoutError:
            return
        self._heed_stop()

    def _is_long(self) -> bool:
        if workflow.info().is_continue_as_new_suggested():
            return True
        return self._looks >= self._looks_a_run and workflow.patched(SHORT_RUNS)

    async def _look(self, step: str, *, is_due: bool) -> None:
        progress = self._progress
        progress.looks += 1
        self._looks += 1
        look = await self._forward("judge_rollout", self._task(step, is_due=is_due), Look)
        if look.evaluation and look.evaluation != progress.look.evaluation:
            progress.evaluations.append(look.evaluation)
        progress.look = look
        if look.generation > progress.generation:
            await self._explain_fence()
        if look.verdict == FAIL:
            raise Ended(State.ROLLED_BACK, "; ".join(look.reason_codes))
        self._hold_the_blast_radius(look)
        reasons = [code for code in look.reason_codes if code in PAUSING]
        if reasons and not progress.paused:
            progress.paused = reasons[0]

    def _task(self, step: str, *, is_due: bool) -> JudgeTask:
        progress, spec = self._progress, self._spec
        return JudgeTask(
            subject=self._subject(),
            baseline=progress.baseline,
            rollout=progress.rollout,
            step=step,
            guards=spec.guards,
            written=progress.written,
            thresholds_us=progress.thresholds_us,
            sticky=bool(spec.sticky_by),
            acknowledged=progress.acknowledged,
            is_due=is_due,
            look=progress.looks,
            last=progress.look,
            dry_run=spec.dry_run,
        )

    async def _report_shadow(self) -> None:
        """Have the shadow's diff stored and shown; that monitor is away stops nothing."""
        if self._is_of_first_shape():
            return
        progress = self._progress
        key = f"{progress.rollout}.shadow_diff"
        task = ShadowTask(self._subject(), progress.baseline, progress.rollout, key)
        try:
            progress.shadow_diff = await self._call(
                "report_shadow", task, ShadowDiff, REPORT_PATIENCE
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            workflow.logger.warning("the shadow is not reported: %s", cause_of(error))
            return
        progress.evaluations.append(key)

    def _hold_the_blast_radius(self, look: Look) -> None:
        most = self._spec.blast_radius.max_exposed_calls
        if most and self._progress.state in BEFORE_IT_PASSED and look.exposed_calls > most:
            is_last = self._progress.written[-1].weight == self._spec.steps[-1].weight
            if not (is_last and look.verdict == PASS):
                raise Ended(State.ROLLED_BACK, "blast_radius")

    def _is_doubted(self, patience_s: float) -> bool:
        """Say whether records of the present interval have been missing for longer than a flush."""
        progress = self._progress
        if INCOMPLETE_EVIDENCE not in progress.look.reason_codes:
            progress.doubted_s = 0.0
            return False
        progress.doubted_s = progress.doubted_s or now_s()
        return now_s() - progress.doubted_s >= patience_s

    def _is_done(self, requests: int, *, needs_pass: bool) -> bool:
        look = self._progress.look
        if look.calls < requests:
            return False
        if look.verdict == PASS or not needs_pass:
            return True
        if self._spec.on_inconclusive == "rollback":
            raise Ended(State.ROLLED_BACK, "inconclusive: " + "; ".join(look.reason_codes))
        return False
