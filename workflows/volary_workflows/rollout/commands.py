"""What people ask of a running rollout: updates that change its progress, a query that shows it."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from volary_workflows.judge.inputs import TINY_REGRESSION
    from volary_workflows.rollout.messages import (
        Command,
        Progress,
        RolloutSpec,
        RolloutStatus,
        State,
        TrafficStep,
    )

WATCHED = (State.SHADOW, State.CANARY, State.PROGRESSING, State.BAKING)


class Commanded:
    """The updates and the query of a rollout; a validator refuses what its state does not allow."""

    _spec: RolloutSpec
    _progress: Progress

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
        )

    @workflow.update
    def approve(self, command: Command) -> RolloutStatus:
        """Let the candidate through."""
        self._progress.approved_by = command.principal
        return self.status()

    @workflow.update
    def reject(self, command: Command) -> RolloutStatus:
        """Refuse the candidate; the rollout ends ABORTED."""
        self._progress.rejected_by = command.principal
        return self.status()

    @approve.validator
    def _may_approve(self, command: Command) -> None:
        self._may_decide(command)

    @reject.validator
    def _may_reject(self, command: Command) -> None:
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
        self._progress.paused = command.comment or f"paused by {command.principal}"
        return self.status()

    @pause.validator
    def _may_pause(self, command: Command) -> None:  # noqa: ARG002
        self._require(*WATCHED)

    @workflow.update
    def resume(self, command: Command) -> RolloutStatus:  # noqa: ARG002
        """Go on; a regression that paused the rollout counts as accepted."""
        progress = self._progress
        if progress.paused == TINY_REGRESSION:
            progress.acknowledged = [*progress.acknowledged, TINY_REGRESSION]
        progress.paused = ""
        return self.status()

    @resume.validator
    def _may_resume(self, command: Command) -> None:  # noqa: ARG002
        if not self._progress.paused:
            raise ApplicationError("the rollout is not paused", type="FAILED_PRECONDITION")

    @workflow.update
    def skip_step(self, command: Command) -> RolloutStatus:  # noqa: ARG002
        """Leave the present step without waiting for more evidence, unless it says FAIL."""
        self._progress.skips += 1
        return self.status()

    @skip_step.validator
    def _may_skip(self, command: Command) -> None:  # noqa: ARG002
        self._require(*WATCHED)

    @workflow.update
    def abort(self, command: Command) -> RolloutStatus:
        """Go back and end ABORTED."""
        self._stop(State.ABORTED, command.comment or f"aborted by {command.principal}")
        return self.status()

    @abort.validator
    def _may_abort(self, command: Command) -> None:  # noqa: ARG002
        self._require_running()

    @workflow.update
    def supersede(self, command: Command) -> RolloutStatus:
        """Go back and end SUPERSEDED, to make way for another candidate."""
        self._stop(State.SUPERSEDED, command.comment or f"superseded by {command.principal}")
        return self.status()

    @supersede.validator
    def _may_supersede(self, command: Command) -> None:  # noqa: ARG002
        self._require_running()

    def _stop(self, state: State, reason: str) -> None:
        self._progress.stop, self._progress.stop_reason = state, reason

    def _require_running(self) -> None:
        if self._progress.is_closing:
            raise ApplicationError("the version is being promoted", type="FAILED_PRECONDITION")
        self._require(
            State.PENDING, State.VALIDATING, State.AWAITING_APPROVAL, State.LOADING, *WATCHED
        )

    def _require(self, *states: State) -> None:
        if self._progress.state not in states:
            raise ApplicationError(
                f"the rollout is {self._progress.state}", type="FAILED_PRECONDITION"
            )

    def _reason(self) -> str:
        return self._progress.history[-1].reason if self._progress.history else ""
