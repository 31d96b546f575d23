"""What people ask of a running rollout: updates that change its progress, a query that shows it."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from volary_workflows.calling import now_s
    from volary_workflows.judge.inputs import PAUSING
    from volary_workflows.rollout.messages import (
        Approved,
        Command,
        RolloutStatus,
        State,
        TrafficStep,
    )
    from volary_workflows.rollout.running import Running

WATCHED = (State.SHADOW, State.CANARY, State.PROGRESSING, State.BAKING)


class Commanded(Running):
    """The updates and the query of a rollout; a validator refuses what its state does not allow.

    A request that was heard before is allowed in every state, and changes nothing again.
    """

    @workflow.query
    def status(self) -> RolloutStatus:
        """Return where the rollout is."""
        progress = self._progress
        last = progress.written[-1] if progress.written else TrafficStep("", 0, 0)
        return RolloutStatus(
            rollout=progress.rollout,
            model=self._spec.model,
            candidate=self._spec.candidate,
            baseline=progress.baseline,
            state=progress.state,
            reason=self._reason(),
            step=last.step,
            weight=last.weight,
            generation=progress.generation,
            paused=progress.paused,
            approved_by=progress.approved_by,
            look=progress.look,
            evaluations=progress.evaluations,
            history=progress.history,
            approvals=progress.approvals,
            rejection=progress.rejection,
            shadow_diff=progress.shadow_diff,
            heard=progress.heard,
        )

    @workflow.update
    def approve(self, command: Command) -> RolloutStatus:
        """Say yes; the candidate is let through once as many as the quorum have."""
        progress = self._progress
        if self._hear("approve", command.request_id):
            given = [*progress.approvals, Approved(command.principal, command.comment, now_s())]
            progress.approvals = given
            if len(given) >= self._spec.approval.quorum:
                progress.approved_by = ", ".join(each.principal for each in given)
        return self.status()

    @workflow.update
    def reject(self, command: Command) -> RolloutStatus:
        """Refuse the candidate; the rollout ends ABORTED."""
        if self._hear("reject", command.request_id):
            self._progress.rejected_by = command.principal
            self._progress.rejection = Approved(command.principal, command.comment, now_s())
        return self.status()

    @approve.validator
    def _may_approve(self, command: Command) -> None:
        if self._has_heard("approve", command.request_id):
            return
        self._may_decide(command)
        if any(each.principal == command.principal for each in self._progress.approvals):
            raise ApplicationError(
                f"{command.principal} has approved already: another must",
                type="FAILED_PRECONDITION",
            )

    @reject.validator
    def _may_reject(self, command: Command) -> None:
        if not self._has_heard("reject", command.request_id):
            self._may_decide(command)

    def _may_decide(self, command: Command) -> None:
        self._require(State.AWAITING_APPROVAL)
        who = self._spec.approval.who
        if not command.principal:
            raise ApplicationError("principal: must be named", type="INVALID_ARGUMENT")
        if who and command.principal not in who:
            raise ApplicationError(
                f"{command.principal} may not decide: {', '.join(who)} may",
                type="PERMISSION_DENIED",
            )

    @workflow.update
    def pause(self, command: Command) -> RolloutStatus:
        """Hold the weight where it is; a bad candidate is still rolled back."""
        if self._hear("pause", command.request_id):
            self._progress.paused = command.comment or f"paused by {command.principal}"
        return self.status()

    @pause.validator
    def _may_pause(self, command: Command) -> None:
        if not self._has_heard("pause", command.request_id):
            self._require(*WATCHED)

    @workflow.update
    def resume(self, command: Command) -> RolloutStatus:
        """Go on; what the judge paused the rollout for counts as accepted."""
        progress = self._progress
        if self._hear("resume", command.request_id):
            if progress.paused in PAUSING:
                progress.acknowledged = [*progress.acknowledged, progress.paused]
            progress.paused = ""
        return self.status()

    @resume.validator
    def _may_resume(self, command: Command) -> None:
        if not (self._progress.paused or self._has_heard("resume", command.request_id)):
            raise ApplicationError("the rollout is not paused", type="FAILED_PRECONDITION")

    @workflow.update
    def skip_step(self, command: Command) -> RolloutStatus:
        """Leave the present step without waiting for more evidence, unless it says FAIL."""
        if self._hear("skip_step", command.request_id):
            self._progress.skips += 1
        return self.status()

    @skip_step.validator
    def _may_skip(self, command: Command) -> None:
        if not self._has_heard("skip_step", command.request_id):
            self._require(State.PENDING, State.STAGING, *WATCHED)

    @workflow.update
    def abort(self, command: Command) -> RolloutStatus:
        """Go back and end ABORTED."""
        if self._hear("abort", command.request_id):
            self._stop(State.ABORTED, command.comment or f"aborted by {command.principal}")
        return self.status()

    @abort.validator
    def _may_abort(self, command: Command) -> None:
        if not self._has_heard("abort", command.request_id):
            self._require_running()

    @workflow.update
    def supersede(self, command: Command) -> RolloutStatus:
        """Go back and end SUPERSEDED, to make way for another candidate."""
        if self._hear("supersede", command.request_id):
            self._stop(State.SUPERSEDED, command.comment or f"superseded by {command.principal}")
        return self.status()

    @supersede.validator
    def _may_supersede(self, command: Command) -> None:
        if not self._has_heard("supersede", command.request_id):
            self._require_running()

    def _stop(self, state: State, reason: str) -> None:
        self._progress.stop, self._progress.stop_reason = state, reason

    def _require_running(self) -> None:
        if self._progress.is_closing:
            raise ApplicationError("the version is being promoted", type="FAILED_PRECONDITION")
        self._require(
            State.PENDING,
            State.VALIDATING,
            State.AWAITING_APPROVAL,
            State.LOADING,
            State.STAGING,
            *WATCHED,
        )

    def _require(self, *states: State) -> None:
        if self._progress.state not in states:
            raise ApplicationError(
                f"the rollout is {self._progress.state}", type="FAILED_PRECONDITION"
            )
