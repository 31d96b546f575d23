"""A world for rollouts: same-name activities over a small gateway and registry in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from temporalio import activity
from temporalio.exceptions import ApplicationError
from volary_workflows.identifiers import rollout_workflow_id
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import (
    Look,
    Rollout,
    RolloutSpec,
    RolloutStatus,
    ShadowDiff,
    ShadowStage,
    Step,
)
from volary_workflows.rollout.tasks import (
    ApprovalDecision,
    JudgeTask,
    Notice,
    Preflight,
    ShadowTask,
    StagingReport,
    Subject,
    TrafficChange,
    TrafficState,
)

from tests.unit.workflows.serving import serving

HOUR_S = 3_600.0
GOOD = Look("PASS", ["GOOD_ENOUGH"], ["fine"], calls=10_000)
UNSURE = Look("INCONCLUSIVE", ["NEEDS_MORE_CALLS"], ["wait"], more_calls=50, calls=10_000)
BAD = Look("FAIL", ["CANDIDATE_WORSE"], ["worse"], calls=10_000)
LOSSY = Look("INCONCLUSIVE", ["INCOMPLETE_EVIDENCE"], ["lost"], calls=10_000)
TINY = Look("INCONCLUSIVE", ["TINY_REGRESSION"], ["tiny"], calls=10_000)

SPEC = RolloutSpec(
    model="delays",
    candidate=2,
    shadow=ShadowStage(1.0, HOUR_S, 100),
    steps=[Step(1_000, 6 * HOUR_S, 100), Step(5_000, 12 * HOUR_S, 100)],
    bake_s=24 * HOUR_S,
    guards=[Guard()],
    poll_s=HOUR_S,
    max_extensions=3,
)


@dataclass
class World:
    """What the fakes remember. `looks` maps a step to what the judge says there."""

    production: int = 1
    generation: int = 7
    cause: str = "SET"
    rollout: str = ""
    approval: str = "APPROVAL_STATE_PENDING"
    approved_by: str = ""
    problems: list[str] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)
    changes: list[TrafficChange] = field(default_factory=list)
    replies: dict[str, TrafficState] = field(default_factory=dict)
    decisions: list[ApprovalDecision] = field(default_factory=list)
    tasks: list[JudgeTask] = field(default_factory=list)
    loaded: set[int] = field(default_factory=set)
    fences: list[int] = field(default_factory=list)  # of what was loaded and let go
    load_failure: str = ""
    lose_replies: int = 0
    mute_step: str = ""
    lossy: set[int] = field(default_factory=set)
    is_blind: bool = False
    approved_at_s: float = 0.0
    cooling_s: list[float] = field(default_factory=list)
    staging: list[str] = field(default_factory=list)
    staged: int = 0
    notices: list[Notice] = field(default_factory=list)
    is_deaf: bool = False
    is_unwatched: bool = False

    @activity.defn
    async def check_rollout(self, spec: RolloutSpec) -> Preflight:
        return Preflight(
            "sha256:" + "0" * 64,
            self.production,
            self.generation,
            self.approval,
            self.approved_by,
            [1_000, 5_000],
            self.problems,
            "good work",
            self.approved_at_s,
            self.cooling_s.pop(0) if self.cooling_s else 0.0,
        )

    @activity.defn
    async def decide_approval(self, decision: ApprovalDecision) -> None:
        self.decisions.append(decision)

    @activity.defn
    async def load_version(self, subject: Subject) -> int:
        if self.load_failure:
            raise ApplicationError("refused", type=self.load_failure, non_retryable=True)
        self.loaded.add(subject.version)
        self.fences.append(subject.rollout_generation)
        return 2

    @activity.defn
    async def stage_version(self, subject: Subject) -> StagingReport:
        self.staged += 1
        return StagingReport(5, self.staging)

    @activity.defn
    async def report_shadow(self, task: ShadowTask) -> ShadowDiff:
        if self.is_unwatched:
            raise ApplicationError("no monitor", type="PEER_NOT_CONFIGURED")
        return ShadowDiff(100, 0.97, 0.01, ["97.00% of 100 pairs agree"], task.key)

    @activity.defn
    async def notify(self, notice: Notice) -> None:
        if self.is_deaf:
            raise ApplicationError("nobody is there", type="WEBHOOK_UNREACHABLE")
        self.notices.append(notice)

    @activity.defn
    async def unload_version(self, subject: Subject) -> bool:
        self.loaded.discard(subject.version)
        self.fences.append(subject.rollout_generation)
        return True

    @activity.defn
    async def set_traffic(self, change: TrafficChange) -> TrafficState:
        """Like gateway: once for a request id, fenced by generation."""
        if change.request_id not in self.replies:
            if change.expected_generation != self.generation:
                raise ApplicationError("stale", type="STALE_GENERATION", non_retryable=True)
            self.generation += 1
            self.cause, self.rollout = change.cause, change.rollout
            self.production = change.production or self.production
            self.changes.append(change)
            state = TrafficState(self.generation, self.cause, self.rollout)
            self.replies[change.request_id] = state
        if change.step == self.mute_step:
            raise ApplicationError("no reply, ever", type="UNAVAILABLE")
        if self.lose_replies:
            self.lose_replies -= 1
            raise ApplicationError("the reply was lost", type="UNAVAILABLE")
        return self.replies[change.request_id]

    @activity.defn
    async def read_traffic(self, subject: Subject) -> TrafficState:
        return TrafficState(self.generation, self.cause, self.rollout)

    @activity.defn
    async def judge_rollout(self, task: JudgeTask) -> Look:
        self.tasks.append(task)
        look = self.looks.get(task.step, GOOD)
        if set(look.reason_codes) & set(task.acknowledged):
            look = GOOD
        if task.written[-1].generation in self.lossy:
            look = LOSSY
        return replace(
            look,
            generation=0 if self.is_blind else self.generation,
            evaluation=f"{task.rollout}.{task.step}.{task.look}",
        )

    def break_glass(self, cause: str = "BREAK_GLASS") -> None:
        """Write the traffic as somebody else would."""
        self.generation += 1
        self.cause, self.rollout = cause, ""

    @property
    def steps(self) -> list[tuple[str, int]]:
        """What was written, in order: step and the candidate's weight."""
        return [(change.step, change.weight) for change in self.changes]

    def activities(self):
        return [
            self.check_rollout,
            self.decide_approval,
            self.load_version,
            self.stage_version,
            self.notify,
            self.report_shadow,
            self.unload_version,
            self.set_traffic,
            self.read_traffic,
            self.judge_rollout,
        ]


async def started(environment, queue, spec=SPEC, progress=None, **more):
    return await environment.client.start_workflow(
        "RolloutWorkflow",
        Rollout(spec, progress, **more),
        id=f"{rollout_workflow_id(spec.project, spec.model)}/{queue}",
        task_queue=queue,
        result_type=RolloutStatus,
    )


async def rolled(environment, world, spec=SPEC) -> RolloutStatus:
    """Run one rollout to its end."""
    async with serving(environment, world) as queue:
        handle = await started(environment, queue, spec)
        return await handle.result()


async def reached(handle, *states: str) -> RolloutStatus:
    """Wait, in real time, until the rollout is in one of the states."""
    async with asyncio.timeout(20):
        while True:
            status = await handle.query("status", result_type=RolloutStatus)
            if status.state in states:
                return status
            await asyncio.sleep(0.02)


async def until(condition):
    """Wait, in real time, until the condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def states(status: RolloutStatus) -> list[str]:
    return [transition.state for transition in status.history]
