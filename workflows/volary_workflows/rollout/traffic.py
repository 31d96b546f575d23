"""How a rollout writes the traffic, finds out who else did, and goes back."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from volary_workflows.calling import PATIENCE, Ended, now_s, type_of
    from volary_workflows.rollout.messages import State, TrafficStep, Transition
    from volary_workflows.rollout.running import Running
    from volary_workflows.rollout.tasks import TrafficChange, TrafficState

STALE = "STALE_GENERATION"
WRITTEN_FIRST = "written-first"
WRITTEN_HERE = "written-here"
BREAK_GLASS, BRAKE, ROLLBACK = "BREAK_GLASS", "BRAKE", "ROLLBACK"
BEGUN_AGAIN = "records were lost, its evidence begins again"


class TrafficWrites(Running):
    """Fenced writes: whoever else writes the traffic ends the rollout."""

    async def _write(
        self, step: str, *, weight: int, shadow: int = 0, cause: str = "STEP", production: int = 0
    ) -> None:
        """Write a step of the traffic once; what continued as new finds it written."""
        written = self._progress.written
        if not written or written[-1].step != step:
            await self._put(step, weight, shadow, cause, production)

    async def _renew(self, step: str) -> None:
        """Begin a new interval of the same step: what is lost of the old one stays lost."""
        progress = self._progress
        progress.doubted_s = 0.0
        last = progress.written[-1]
        progress.history.append(Transition(progress.state, now_s(), f"{step}: {BEGUN_AGAIN}"))
        await self._put(step, last.weight, last.shadow, "STEP", 0)

    async def _put(self, step: str, weight: int, shadow: int, cause: str, production: int) -> None:
        self._heed_stop()
        progress = self._progress
        change = self._change(step, weight, shadow, cause, production)
        progress.is_exposed = True  # from here on a lost reply may hide a write that was made
        try:
            after = await self._call("set_traffic", change, TrafficState, PATIENCE)
        except ActivityError as error:
            if type_of(error) != STALE:
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
            if seen.cause == ROLLBACK and self._progress.state != State.ROLLING_BACK:
                # written within a task that was lost with the word that it was for: an abort
                raise Ended(State.ABORTED, "rolled back by a word that was lost")
            return
        reason = "break_glass" if seen.cause == BREAK_GLASS else "traffic_changed_by_others"
        raise Ended(State.ROLLED_BACK, reason, is_fenced=True)

    async def _turn_back(self, end: Ended) -> None:
        """Give all traffic back to the baseline unless fenced off, then let the candidate go."""
        if not self._progress.is_loaded:
            is_failure = end.state == State.ROLLED_BACK
            self._enter(State.FAILED if is_failure else end.state, end.reason)
            return
        self._enter(State.ROLLING_BACK, end.reason)
        while not end.is_fenced:
            try:
                await self._restore()
                break
            except Ended as fence:
                end = replace_reason(end, fence)
        await self._call("unload_version", self._subject(), bool, None)
        is_failure = end.state == State.ROLLED_BACK and not self._progress.is_exposed
        self._enter(State.FAILED if is_failure else end.state, end.reason)

    async def _restore(self) -> None:
        """Write the baseline back, as often as it takes; raise Ended when fenced off.

        The write comes first: every call until then meets the candidate. Gateway refuses it when
        somebody else wrote, and only then it is asked who did.
        """
        progress = self._progress
        if not progress.is_exposed:
            return
        is_written_first = workflow.patched(WRITTEN_FIRST)
        if not is_written_first or not progress.baseline:
            await self._explain_fence()
        if not progress.baseline:
            return  # it was the first version: there is nothing to go back to
        change = self._change("rollback", 0, 0, ROLLBACK, progress.baseline)
        try:
            after = await self._given_back(change)
        except ActivityError as error:
            if type_of(error) != STALE:
                raise
            if is_written_first:
                await self._explain_fence()
            await self._restore()
            return
        self._note("rollback", after.generation, 0, 0)

    async def _given_back(self, change: TrafficChange) -> TrafficState:
        """Write at once; when that does not come off, as often as it takes.

        A repeated write has the same request id, and is made once; a refused one is refused again.
        """
        if workflow.patched(WRITTEN_HERE):
            try:
                return await self._call_here("set_traffic", change, TrafficState)
            except FailureError as error:  # of a local activity not always an ActivityError
                if is_cancelled_exception(error):
                    raise
        return await self._call("set_traffic", change, TrafficState, None)


def replace_reason(end: Ended, fence: Ended) -> Ended:
    """Return the end as the fence has it, keeping ABORTED and SUPERSEDED."""
    state = end.state if end.state in (State.ABORTED, State.SUPERSEDED) else fence.state
    reason = fence.reason if fence.is_fenced else end.reason
    return Ended(state, reason, is_fenced=fence.is_fenced)
