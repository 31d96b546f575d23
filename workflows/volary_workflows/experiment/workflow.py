"""The workflow that splits a model's traffic between versions, and gives it back.

Deterministic: it decides on what activities return and on time alone. It ends with production
answering every call, unless somebody else wrote the traffic meanwhile: then that stands.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from volary_workflows.attributes import searchable
    from volary_workflows.calling import PATIENCE, Calling, Ended, cause_of, now_s, type_of
    from volary_workflows.experiment.messages import (
        Arm,
        Change,
        Experiment,
        ExperimentLook,
        ExperimentSpec,
        ExperimentStatus,
        Progress,
        Segment,
        State,
    )
    from volary_workflows.experiment.naming import experiment_id
    from volary_workflows.experiment.soundness import SpecificationError, require_sound
    from volary_workflows.experiment.tasks import ExperimentTask, Preflight, Split
    from volary_workflows.holding import Held, held, let_go
    from volary_workflows.identifiers import experiment_group_id
    from volary_workflows.rollout.messages import WHOLE, Command
    from volary_workflows.rollout.tasks import StagingReport, Subject, TrafficState
    from volary_workflows.rollout.traffic import BRAKE, BREAK_GLASS, STALE

LOOKS = 300  # of an experiment that names no poll
LEAST_POLL_S = 0.25
SHORT_RUNS = "short-runs"
REPORT_PATIENCE = timedelta(minutes=10)  # traffic is back by then: only the report waits
PROBLEMS_SHOWN = 3


@workflow.defn(name="ExperimentWorkflow")
class ExperimentWorkflow(Calling[Progress]):
    """One experiment on one model: `Experiment` in, `ExperimentStatus` out."""

    @workflow.init
    def __init__(self, experiment: Experiment) -> None:
        self._spec: ExperimentSpec = experiment.spec
        self._progress = experiment.progress or Progress()
        self._group: Held | None = None
        self._looks_a_run = experiment.looks_a_run
        self._looks = 0  # of this run

    @workflow.run
    async def run(self, experiment: Experiment) -> ExperimentStatus:  # noqa: ARG002 - in __init__
        """Go through the stages; traffic is back with production at every end."""
        if not self._progress.experiment:
            seed = workflow.info().first_execution_run_id
            self._progress.request_seed = seed
            self._progress.experiment = experiment_id(self._spec.model, self._spec.name, seed)
        try:
            await self._go_on()
        except Ended as end:
            await self._end(end)
        except (ActivityError, asyncio.CancelledError) as error:
            is_cancelled = is_cancelled_exception(error)
            why = "cancelled" if is_cancelled else f"failed: {cause_of(error)}"
            await self._end(Ended(State.STOPPED if is_cancelled else State.FAILED, why))
        await let_go(self._group)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.status()

    # --- what people ask ------------------------------------------------------------------------

    @workflow.query
    def status(self) -> ExperimentStatus:
        """Return where the experiment is."""
        progress, spec = self._progress, self._spec
        began_s = progress.began_s
        return ExperimentStatus(
            experiment=progress.experiment,
            name=spec.name,
            model=spec.model,
            state=progress.state,
            reason=progress.history[-1].reason if progress.history else "",
            arms=spec.arms,
            control=spec.control,
            metric=spec.metric.name,
            generation=progress.generation,
            began_s=began_s,
            ends_s=began_s + spec.max_duration_s if began_s else 0.0,
            look=progress.look,
            history=progress.history,
            heard=progress.heard,
            segment=spec.segment,
        )

    @workflow.update
    def stop(self, command: Command) -> ExperimentStatus:
        """Give the traffic back, take a last look, and end."""
        who = command.principal or "somebody"
        if self._hear("stop", command.request_id):
            self._progress.stop = command.comment or f"stopped by {who}"
        return self.status()

    @stop.validator
    def _may_stop(self, command: Command) -> None:
        if self._has_heard("stop", command.request_id):
            return
        if self._progress.state in (State.RETURNING, State.CONCLUDED, State.STOPPED, State.FAILED):
            raise ApplicationError(
                f"the experiment is {self._progress.state}", type="FAILED_PRECONDITION"
            )

    # --- the stages -----------------------------------------------------------------------------

    async def _go_on(self) -> None:
        if not self._progress.began_s:
            await self._begin()
        await self._watch()

    async def _begin(self) -> None:
        await self._validate()
        await self._hold_group()
        await self._prepare()
        await self._put("split", self._in_order())
        self._progress.began_s = now_s()
        self._enter(State.RUNNING)

    async def _validate(self) -> None:
        self._enter(State.VALIDATING)
        try:
            require_sound(self._spec)
        except SpecificationError as error:
            raise self._invalid(error.problems) from error
        found = await self._forward("check_experiment", self._spec, Preflight)
        if found.problems:
            raise self._invalid(dict(text.split(": ", 1) for text in found.problems))
        self._progress.generation, self._progress.digests = found.generation, found.digests

    async def _hold_group(self) -> None:
        """Take the group: a workflow of its name runs as long as this one does."""
        spec = self._spec
        if not spec.group:
            return
        group_id = experiment_group_id(spec.project, spec.group)
        self._group = await held(group_id, self._progress.experiment)
        if self._group is None:
            text = f"another experiment of group {spec.group} is running"
            raise self._invalid({"group": text})

    async def _prepare(self) -> None:
        """Have every treatment loaded, and answer by itself, before anybody's traffic."""
        self._enter(State.LOADING)
        self._progress.is_loaded = True
        for arm in self._spec.treatments:
            await self._forward("load_version", self._subject(arm), int)
        self._enter(State.STAGING)
        for arm in self._spec.treatments:
            report = await self._forward("stage_version", self._subject(arm), StagingReport)
            if report.problems:
                shown = "; ".join(report.problems[:PROBLEMS_SHOWN])
                raise Ended(State.FAILED, f"staging refused {arm.name}: {shown}")

    async def _watch(self) -> None:
        """Look until it concludes, people stop it, or its time is over."""
        spec, progress = self._spec, self._progress
        poll_s = spec.poll_s or max(spec.max_duration_s / LOOKS, LEAST_POLL_S)
        ends_s = progress.began_s + spec.max_duration_s
        while True:
            await self._pass_time(min(poll_s, ends_s - now_s()))
            elapsed_s = now_s() - progress.began_s
            if elapsed_s >= spec.max_duration_s:
                raise Ended(State.CONCLUDED, "max_duration")
            await self._look(is_due=elapsed_s >= spec.min_duration_s)
            if progress.look.report:
                raise Ended(State.CONCLUDED, progress.look.verdict)

    async def _pass_time(self, seconds: float) -> None:
        if self._is_long():
            await workflow.wait_condition(workflow.all_handlers_finished)
            if not self._progress.stop:  # what was said meanwhile comes first
                again = Experiment(self._spec, self._progress, self._looks_a_run)
                workflow.continue_as_new(again)
        try:
            await workflow.wait_condition(
                lambda: bool(self._progress.stop), timeout=timedelta(seconds=max(seconds, 0.0))
            )
        except TimeoutError:
            return
        self._heed_stop()

    def _is_long(self) -> bool:
        """Say whether the history is; one of a group keeps the child that holds the group."""
        is_long = self._looks >= self._looks_a_run and not self._spec.group
        return is_long and workflow.patched(SHORT_RUNS)

    async def _look(self, *, is_due: bool) -> None:
        progress = self._progress
        progress.looks += 1
        self._looks += 1
        task = ExperimentTask(self._spec, progress.experiment, progress.written, is_due)
        progress.look = await self._forward("judge_experiment", task, ExperimentLook)
        if progress.look.generation > progress.generation:
            await self._explain_fence()

    # --- the traffic ----------------------------------------------------------------------------

    async def _put(self, step: str, arms: list[Arm]) -> None:
        self._heed_stop()
        progress = self._progress
        split = self._split(step, arms)
        progress.written = [*progress.written, progress.generation + 1]  # a lost reply may hide it
        try:
            after = await self._call("set_split", split, TrafficState, PATIENCE)
        except ActivityError as error:
            if type_of(error) != STALE:
                raise
            await self._explain_fence()
            raise
        progress.generation = after.generation

    def _split(self, step: str, arms: list[Arm]) -> Split:
        spec, progress = self._spec, self._progress
        return Split(
            subject=self._subject(spec.production),
            arms=arms,
            step=step,
            experiment=progress.experiment,
            expected_generation=progress.generation,
            request_id=self._request_id(f"traffic/{step}/{progress.generation}"),
            sticky_by=spec.sticky_by if len(arms) > 1 else "",
            salt=spec.salt or progress.experiment[-64:],
            reason=spec.reason or f"experiment {spec.name}",
            segment=spec.segment if len(arms) > 1 else Segment(),
        )

    async def _explain_fence(self) -> None:
        """Raise Ended when somebody else wrote the traffic; adopt a write that was our own."""
        progress = self._progress
        seen = await self._call(
            "read_traffic", self._subject(self._spec.production), TrafficState, None
        )
        if seen.generation <= progress.generation:
            return
        is_ours = seen.rollout == progress.experiment and seen.cause != BREAK_GLASS
        if seen.cause == BRAKE or is_ours:
            progress.generation = seen.generation
        if seen.cause == BRAKE:  # a machine saw harm: going back is what it asks for
            raise Ended(State.STOPPED, "brake")
        if not is_ours:
            reason = "break_glass" if seen.cause == BREAK_GLASS else "traffic_changed_by_others"
            raise Ended(State.STOPPED, reason, is_fenced=True)

    async def _end(self, end: Ended) -> None:
        """Give the traffic back, store the report where it is not yet, let the versions go."""
        progress = self._progress
        if not progress.is_loaded:
            self._enter(end.state, end.reason)
            return
        self._enter(State.RETURNING, end.reason)
        while progress.written and not end.is_fenced:
            try:
                await self._give_back()
                break
            except Ended as other:
                end = other if other.is_fenced else end
        await self._report()
        for arm in self._spec.treatments:
            await self._call("unload_version", self._subject(arm), bool, None)
        self._enter(end.state, end.reason)

    async def _give_back(self) -> None:
        """Write production back, as often as it takes; raise Ended when somebody else wrote."""
        await self._explain_fence()
        control = self._spec.production
        whole = self._split("end", [Arm(control.name, control.version, WHOLE)])
        try:
            after = await self._call("set_split", whole, TrafficState, None)
        except ActivityError as error:
            if type_of(error) != STALE:
                raise
            await self._give_back()
            return
        self._progress.generation = after.generation

    async def _report(self) -> None:
        """Store what was known at the end, unless a look has; without monitor there is none."""
        progress = self._progress
        if progress.look.report or not progress.began_s:
            return
        task = ExperimentTask(
            self._spec, progress.experiment, progress.written, is_due=True, is_last=True
        )
        try:
            progress.look = await self._call(
                "judge_experiment", task, ExperimentLook, REPORT_PATIENCE
            )
        except ActivityError as error:
            workflow.logger.warning("the experiment has no report: %s", cause_of(error))

    # --- small things ---------------------------------------------------------------------------

    def _invalid(self, problems: dict[str, str]) -> ApplicationError:
        text = "; ".join(f"{field}: {what}" for field, what in problems.items())
        self._enter(State.FAILED, text)
        return ApplicationError(text, problems, type="INVALID_SPECIFICATION", non_retryable=True)

    def _in_order(self) -> list[Arm]:
        return [*self._spec.treatments, self._spec.production]

    def _subject(self, arm: Arm) -> Subject:
        spec, digests = self._spec, self._progress.digests
        digest = digests[spec.arms.index(arm)] if digests else ""
        return Subject(spec.project, spec.model, arm.version, digest)

    def _heed_stop(self) -> None:
        if self._progress.stop:
            raise Ended(State.STOPPED, self._progress.stop)

    def _enter(self, state: str, reason: str = "") -> None:
        progress, spec = self._progress, self._spec
        progress.state = state
        progress.history = [*progress.history, Change(state, now_s(), reason)]
        workflow.upsert_search_attributes(searchable(spec.project, spec.model, state))
