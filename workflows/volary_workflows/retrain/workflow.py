"""The workflow that learns again: pull, build, train, gate, roll out.

Every stage leaves either something complete that the next one uses, or nothing that serves:
snapshots and training sets are content-addressed, a run that is given up is cancelled, a
version that the gate refuses is rejected in the registry, and a rollout turns itself back.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from volary_workflows.attributes import searchable
    from volary_workflows.holding import Held, held, let_go
    from volary_workflows.identifiers import retrain_hold_id, rollout_workflow_id
    from volary_workflows.judge.inputs import PASS
    from volary_workflows.liveness import HEARTBEAT
    from volary_workflows.retrain.messages import (
        Abandoned,
        Begun,
        BuildTask,
        Built,
        GateLook,
        GateTask,
        Outcome,
        Pulled,
        PullTask,
        Retrain,
        RetrainStatus,
        Stage,
        Trained,
        TrainingPlan,
        TrainTask,
    )
    from volary_workflows.rollout.messages import Rollout, RolloutStatus, State
    from volary_workflows.rollout.tasks import ApprovalDecision, Subject

RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
)
SHORT, LONG = timedelta(minutes=1), timedelta(hours=12)
PATIENCE = timedelta(hours=24)
SEARCHABLE = "searchable"
COMPENSATED = "compensated"
ONE_AT_A_TIME = "one-at-a-time"
LONG_ACTIVITIES = (
    "pull_source", "build_training_set", "train", "judge_gate", "abandon_operation",
)  # fmt: skip


class Busy(Exception):
    """Another retrain of the training is running."""


@workflow.defn(name="RetrainWorkflow")
class RetrainWorkflow:
    """One retrain of one declared training: `Retrain` in, `RetrainStatus` out."""

    @workflow.init
    def __init__(self, retrain: Retrain) -> None:
        self._retrain = retrain
        self._status = RetrainStatus(trigger=retrain.trigger, until_us=retrain.until_us)
        self._begun: Begun | None = None

    @workflow.run
    async def run(self, retrain: Retrain) -> RetrainStatus:
        """Go through the stages; the result says what happened."""
        self._show()
        hold: Held | None = None
        try:
            if workflow.patched(ONE_AT_A_TIME):
                hold = await self._hold()
            await self._learn()
        except Busy:
            self._end(Outcome.RETRAIN_IN_PROGRESS, f"{retrain.training} is being learned already")
        except (ActivityError, ApplicationError, asyncio.CancelledError) as error:
            stage = self._status.stage
            if is_cancelled_exception(error):
                await self._give_up(Outcome.CANCELLED, f"cancelled while {stage}")
            else:
                await self._give_up(Outcome.FAILED, f"{stage}: {error.__cause__ or error}")
        if hold is not None:
            await let_go(hold)
            with suppress(ChildWorkflowError):
                await hold  # whoever starts one when this has ended finds the way free
        return self._status

    async def _hold(self) -> Held:
        """Keep every other retrain of the training from beginning, whatever its cause."""
        retrain = self._retrain
        hold_id = retrain_hold_id(retrain.project, retrain.training)
        found = await held(hold_id, workflow.info().workflow_id)
        if found is None:
            raise Busy
        return found

    async def _give_up(self, outcome: Outcome, reason: str) -> None:
        """Undo what the stage had begun, then end: nothing half is left, however long it takes."""
        if workflow.patched(COMPENSATED):
            if self._begun is not None:
                await self._abandon(self._begun)
            status = self._status
            is_passed = status.gate is not None and status.gate.verdict == PASS
            if status.version and not is_passed:
                await self._reject(status.model, status.version, f"not judged: {reason}")
                self._note(undone=[*self._status.undone, f"version {status.version} rejected"])
        self._end(outcome, reason)

    async def _abandon(self, begun: Begun) -> None:
        found: Abandoned = await self._call("abandon_operation", begun, Abandoned, None)
        if found.operation:
            self._note(undone=[*self._status.undone, found.operation])
        if found.version:
            self._note(run=found.run, version=found.version)

    async def _learn(self) -> None:
        plan: TrainingPlan = await self._call("read_training", self._retrain, TrainingPlan)
        self._note(stage=Stage.PULLING, model=plan.model)
        snapshots = await self._pull(plan)
        self._note(stage=Stage.BUILDING)
        training, held_out = await self._build(plan, snapshots)
        self._note(stage=Stage.TRAINING, training_set=training.name, rows=training.rows)
        trained = await self._train(training)
        self._note(
            stage=Stage.EVALUATING,
            run=trained.run,
            version=trained.version,
            metrics=trained.metrics,
        )
        gate = await self._gate(plan, trained, held_out)
        self._note(gate=gate)
        if gate.verdict != PASS:
            await self._refuse(plan, trained, gate)
        elif not self._retrain.roll_out:
            self._end(Outcome.REGISTERED, "a rollout was not asked for")
        else:
            await self._roll_out(plan, trained)

    async def _pull(self, plan: TrainingPlan) -> dict[str, str]:
        """Pull the sources in the declared order; one may look things up in those before it."""
        snapshots: dict[str, str] = {}
        for source in plan.sources:
            task = PullTask(
                self._retrain.project,
                source,
                self._retrain.until_us,
                self._request_id(f"pull/{source}"),
            )
            pulled: Pulled = await self._operated(
                "ingest", "StartPull", "pull_source", task, Pulled
            )
            self._note(pulled=[*self._status.pulled, pulled])
            if pulled.snapshot:
                snapshots[source] = pulled.snapshot
        return snapshots

    async def _build(self, plan: TrainingPlan, snapshots: dict[str, str]) -> tuple[Built, Built]:
        """Build what to train on and, from the rows after it, what to judge on."""
        until_us = self._until_us(plan)
        split_us = until_us - plan.holdout_us
        if split_us <= plan.start_us:
            raise _too_little(plan)
        self._note(until_us=until_us)
        training = self._set_of(plan, snapshots, "train", plan.start_us, split_us, split_us)
        held_out = self._set_of(plan, snapshots, "held_out", split_us, until_us, until_us)
        return (
            await self._built(training),
            await self._built(held_out),
        )

    def _until_us(self, plan: TrainingPlan) -> int:
        """Return the asked instant, else the one up to which the spine's source is known."""
        if self._retrain.until_us:
            return self._retrain.until_us
        source = plan.spine.get("source", "")
        return max((p.known_until_us for p in self._status.pulled if p.source == source), default=0)

    def _set_of(
        self,
        plan: TrainingPlan,
        snapshots: dict[str, str],
        what: str,
        start_us: int,
        end_us: int,
        known_until_us: int,
    ) -> BuildTask:
        return BuildTask(
            project=self._retrain.project,
            feature_set=plan.feature_set,
            spine=plan.spine,
            start_us=start_us,
            end_us=end_us,
            known_until_us=known_until_us,
            snapshots=snapshots,
            request_id=self._request_id(f"build/{what}"),
        )

    async def _train(self, training: Built) -> Trained:
        task = TrainTask(
            self._retrain.project,
            self._retrain.training,
            training.name,
            self._retrain.trigger,
            self._request_id("train"),
        )
        return await self._operated("trainer", "StartRun", "train", task, Trained)

    async def _gate(self, plan: TrainingPlan, trained: Trained, held_out: Built) -> GateLook:
        until_us = self._status.until_us
        task = GateTask(
            project=self._retrain.project,
            model=plan.model,
            candidate=trained.version,
            training_set=held_out.name,
            start_us=until_us - plan.holdout_us,
            end_us=until_us,
            rule=plan.gate,
            floors=plan.floors,
            key=f"gate.v{trained.version}.{workflow.info().first_execution_run_id[-8:]}",
            request_id=self._request_id("compare"),
        )
        return await self._operated("trainer", "CompareVersions", "judge_gate", task, GateLook)

    async def _built(self, task: BuildTask) -> Built:
        return await self._operated(
            "features", "BuildTrainingSet", "build_training_set", task, Built
        )

    async def _operated(
        self,
        service: str,
        method: str,
        name: str,
        task: PullTask | BuildTask | TrainTask | GateTask,
        result: type,
    ) -> Any:
        """Run the activity of a stage, and remember the operation that it follows meanwhile."""
        self._begun = Begun(self._retrain.project, service, method, task.request_id)
        done = await self._call(name, task, result)
        self._begun = None
        return done

    async def _refuse(self, plan: TrainingPlan, trained: Trained, gate: GateLook) -> None:
        """Reject the version, so that nobody rolls it out by accident."""
        reason = "; ".join(gate.reasons)
        await self._reject(plan.model, trained.version, reason)
        self._end(Outcome.REFUSED_BY_GATE, reason)

    async def _reject(self, model: str, version: int, reason: str) -> None:
        decision = ApprovalDecision(
            Subject(self._retrain.project, model, version),
            approved=False,
            principal="policy/gate",
            comment=reason,
            request_id=self._request_id("reject"),
        )
        await self._call("decide_approval", decision, None)

    async def _roll_out(self, plan: TrainingPlan, trained: Trained) -> None:
        self._note(stage=Stage.ROLLING_OUT)
        spec = replace(
            plan.rollout,
            candidate=trained.version,
            reason=self._retrain.reason or f"retrained by {self._retrain.trigger}",
            requested_by=self._retrain.requested_by,
        )
        try:
            ended: RolloutStatus = await workflow.execute_child_workflow(
                "RolloutWorkflow",
                Rollout(spec),
                id=rollout_workflow_id(spec.project, spec.model),
                result_type=RolloutStatus,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,  # it turns itself back
            )
        except WorkflowAlreadyStartedError:
            self._end(
                Outcome.ROLLOUT_IN_PROGRESS,
                f"version {trained.version} waits: a rollout of {plan.model} is in progress",
            )
        except ChildWorkflowError as error:
            self._end(Outcome.NOT_PROMOTED, f"the rollout failed: {error.cause}")
        else:
            self._note(rollout=ended)
            is_promoted = ended.state == State.PROMOTED
            self._end(Outcome.PROMOTED if is_promoted else Outcome.NOT_PROMOTED, ended.reason)

    async def _call(
        self,
        name: str,
        message: Any,
        result: type | None,
        patience: timedelta | None = PATIENCE,
    ) -> Any:
        is_long = name in LONG_ACTIVITIES
        return await workflow.execute_activity(
            name,
            message,
            result_type=result,
            start_to_close_timeout=LONG if is_long else SHORT,
            schedule_to_close_timeout=patience,
            heartbeat_timeout=HEARTBEAT,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            retry_policy=RETRY,
        )

    def _request_id(self, step: str) -> str:
        return str(uuid.uuid5(uuid.UUID(workflow.info().first_execution_run_id), step))

    def _note(self, **changes: Any) -> None:
        before = self._status
        self._status = replace(before, **changes)
        if (before.stage, before.outcome) != (self._status.stage, self._status.outcome):
            self._show()

    def _show(self) -> None:
        """Let Temporal's lists be filtered by what the retrain is doing, or how it ended."""
        if workflow.patched(SEARCHABLE):
            status = self._status
            state = status.outcome if status.stage == Stage.DONE else status.stage
            workflow.upsert_search_attributes(
                searchable(self._retrain.project, status.model, state)
            )

    def _end(self, outcome: Outcome, reason: str) -> None:
        self._note(outcome=outcome, reason=reason, stage=Stage.DONE)

    @workflow.query
    def status(self) -> RetrainStatus:
        """Return how far the retrain is."""
        return self._status


def _too_little(plan: TrainingPlan) -> ApplicationError:
    return ApplicationError(
        f"{plan.model}: the held-out window leaves nothing to train on",
        type="WINDOW_TOO_SHORT",
        non_retryable=True,
    )
