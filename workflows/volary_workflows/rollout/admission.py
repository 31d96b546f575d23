"""Before anything is touched: the start, what the world refuses, who must let it through."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from volary_workflows.calling import Ended, now_s
    from volary_workflows.rollout.messages import Approved, State
    from volary_workflows.rollout.running import Running
    from volary_workflows.rollout.specification import SpecificationError, require_sound
    from volary_workflows.rollout.tasks import ApprovalDecision, Preflight

APPROVED = "APPROVAL_STATE_APPROVED"
NOBODY = "policy/none"


class Admission(Running):
    """The stages PENDING, VALIDATING and AWAITING_APPROVAL."""

    async def _validate(self) -> None:
        if self._spec.start_at_s > now_s():
            await self._wait_until(self._spec.start_at_s, "scheduled")
        self._enter(State.VALIDATING)
        try:
            require_sound(self._spec)
        except SpecificationError as error:
            raise self._invalid(error.problems) from error
        found = await self._forward("check_rollout", self._spec, Preflight)
        while found.cooling_s > 0 and not found.problems:
            await self._wait_until(now_s() + found.cooling_s, "cooldown")
            self._enter(State.VALIDATING)
            found = await self._forward("check_rollout", self._spec, Preflight)
        if found.problems:
            raise self._invalid(dict(text.split(": ", 1) for text in found.problems))
        self._adopt(found)

    def _adopt(self, found: Preflight) -> None:
        progress = self._progress
        progress.digest, progress.baseline = found.digest, found.baseline
        progress.generation, progress.thresholds_us = found.generation, found.thresholds_us
        progress.approved_by = ""
        valid_s = self._spec.approval.valid_s
        is_valid = not valid_s or found.approved_at_s + valid_s > now_s()
        if found.approval == APPROVED and is_valid:
            progress.approved_by = found.approved_by
            progress.approvals = [
                Approved(found.approved_by, found.approval_comment, found.approved_at_s)
            ]

    async def _wait_until(self, instant_s: float, why: str) -> None:
        """Stay PENDING until the instant, or until somebody skips the wait."""
        self._enter(State.PENDING, why)
        progress = self._progress
        skips = progress.skips
        try:
            await workflow.wait_condition(
                lambda: bool(progress.stop) or progress.skips > skips,
                timeout=timedelta(seconds=instant_s - now_s()),
            )
        except TimeoutError:
            return
        self._heed_stop()

    def _invalid(self, problems: dict[str, str]) -> ApplicationError:
        text = "; ".join(f"{field}: {what}" for field, what in problems.items())
        self._enter(State.FAILED, text)
        return ApplicationError(text, problems, type="INVALID_SPECIFICATION", non_retryable=True)

    async def _approve(self) -> None:
        progress, policy = self._progress, self._spec.approval
        if self._is_approved_by_people():
            return
        if policy.mode == "none":
            progress.approved_by = NOBODY
            await self._decide(Approved(NOBODY), is_approved=True)
            return
        if policy.mode == "required":
            text = f"version {self._spec.candidate} is not approved by {policy.quorum}"
            raise self._invalid({"candidate": text})
        progress.approvals = [each for each in progress.approvals if self._may_speak(each)]
        progress.approved_by = ""
        self._enter(State.AWAITING_APPROVAL)
        await self._await_decision(policy.expire_s)
        await self._decide(self._approval(), is_approved=True)

    def _is_approved_by_people(self) -> bool:
        sound = [each for each in self._progress.approvals if self._may_speak(each)]
        return len(sound) >= self._spec.approval.quorum

    def _may_speak(self, approved: Approved) -> bool:
        who = self._spec.approval.who
        is_person = bool(approved.principal) and not approved.principal.startswith("policy/")
        return is_person and (not who or approved.principal in who)

    def _approval(self) -> Approved:
        """Return the approvals as one: all names, what each said."""
        given = self._progress.approvals
        said = "; ".join(f"{each.principal}: {each.comment}" for each in given if each.comment)
        comment = given[0].comment if len(given) == 1 else said
        return Approved(", ".join(each.principal for each in given), comment)

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
            rejection = progress.rejection or Approved(progress.rejected_by)
            await self._decide(rejection, is_approved=False)
            raise Ended(State.ABORTED, f"rejected by {progress.rejected_by}")

    async def _decide(self, given: Approved, *, is_approved: bool) -> None:
        decision = ApprovalDecision(
            self._subject(),
            is_approved,
            given.principal,
            given.comment,
            self._request_id("approval"),
        )
        await self._forward("decide_approval", decision, None)
