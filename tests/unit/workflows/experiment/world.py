"""A world for experiments: same-name activities over a small gateway and registry in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from temporalio import activity
from temporalio.exceptions import ApplicationError
from volary_workflows.experiment.messages import (
    Arm,
    Experiment,
    ExperimentLook,
    ExperimentSpec,
    ExperimentStatus,
    Metric,
)
from volary_workflows.experiment.tasks import ExperimentTask, Preflight, Split
from volary_workflows.identifiers import experiment_workflow_id
from volary_workflows.rollout.tasks import StagingReport, Subject, TrafficState

from tests.unit.workflows.serving import serving

DAY_S = 86_400.0
UNSURE = ExperimentLook("UNDECIDED", "", ["UNDECIDED"], ["wait"])
WON = ExperimentLook("WINNER", "bold", ["BETTER"], ["bold is better"], report="kept")
BROKEN = ExperimentLook("INVALID", "", ["SAMPLE_RATIO_MISMATCH"], ["shares"], report="kept")
SPEC = ExperimentSpec(
    name="bolder",
    model="delays",
    arms=[Arm("today", 1, 5_000), Arm("bold", 2, 5_000)],
    control="today",
    metric=Metric("basket_value", upper=100.0, expected=30.0),
    sticky_by="user-id",
    min_effect=1.0,
    min_duration_s=7 * DAY_S,
    max_duration_s=14 * DAY_S,
    poll_s=DAY_S / 4,
    requested_by="principals/ada",
)


@dataclass
class World:
    """What the fakes remember; `look` is what the judge says once `looks_until` have passed."""

    generation: int = 7
    cause: str = "SET"
    owner: str = ""
    problems: list[str] = field(default_factory=list)
    look: ExperimentLook = UNSURE
    looks_until: int = 0
    splits: list[Split] = field(default_factory=list)
    replies: dict[str, TrafficState] = field(default_factory=dict)
    tasks: list[ExperimentTask] = field(default_factory=list)
    loaded: set[int] = field(default_factory=set)
    staging: list[str] = field(default_factory=list)
    lose_replies: int = 0
    is_mute: bool = False
    has_no_monitor: bool = False

    @activity.defn
    async def check_experiment(self, spec: ExperimentSpec) -> Preflight:
        return Preflight(self.generation, ["sha256:1", "sha256:2"], self.problems)

    @activity.defn
    async def load_version(self, subject: Subject) -> int:
        self.loaded.add(subject.version)
        return 2

    @activity.defn
    async def stage_version(self, subject: Subject) -> StagingReport:
        return StagingReport(5, self.staging)

    @activity.defn
    async def unload_version(self, subject: Subject) -> bool:
        self.loaded.discard(subject.version)
        return True

    @activity.defn
    async def set_split(self, split: Split) -> TrafficState:
        """Like gateway: once for a request id, fenced by generation."""
        if split.request_id not in self.replies:
            if split.expected_generation != self.generation:
                raise ApplicationError("stale", type="STALE_GENERATION", non_retryable=True)
            self.generation += 1
            self.cause, self.owner = "STEP", split.experiment
            self.splits.append(split)
            self.replies[split.request_id] = TrafficState(self.generation, "STEP", self.owner)
        if self.is_mute and split.step == "split":
            raise ApplicationError("no reply, ever", type="UNAVAILABLE")
        if self.lose_replies:
            self.lose_replies -= 1
            raise ApplicationError("the reply was lost", type="UNAVAILABLE")
        return self.replies[split.request_id]

    @activity.defn
    async def read_traffic(self, subject: Subject) -> TrafficState:
        return TrafficState(self.generation, self.cause, self.owner)

    @activity.defn
    async def judge_experiment(self, task: ExperimentTask) -> ExperimentLook:
        if task.is_last and self.has_no_monitor:
            raise ApplicationError("no monitor", type="UNAVAILABLE")
        self.tasks.append(task)
        look = self.look if len(self.tasks) > self.looks_until else UNSURE
        is_harm = look.verdict in ("INVALID", "HARMFUL")
        report = f"{task.experiment}.report" if look.report or task.is_last else ""
        if look.report and not (task.is_due or is_harm):
            report = ""
        return replace(look, report=report, generation=self.generation)

    def write(self, cause: str = "BREAK_GLASS", owner: str = "") -> None:
        """Write the traffic as somebody else would."""
        self.generation += 1
        self.cause, self.owner = cause, owner

    @property
    def steps(self) -> list[tuple[str, list[tuple[int, int]]]]:
        """What was written, in order: step, and shares by version."""
        return [(s.step, [(arm.version, arm.weight) for arm in s.arms]) for s in self.splits]

    def activities(self):
        return [
            self.check_experiment,
            self.load_version,
            self.stage_version,
            self.unload_version,
            self.set_split,
            self.read_traffic,
            self.judge_experiment,
        ]


async def started(environment, queue, spec=SPEC, **more):
    return await environment.client.start_workflow(
        "ExperimentWorkflow",
        Experiment(spec, **more),
        id=f"{experiment_workflow_id(spec.project, spec.model)}/{queue}",
        task_queue=queue,
        result_type=ExperimentStatus,
    )


async def ran(environment, world, spec=SPEC) -> ExperimentStatus:
    """Run one experiment to its end."""
    async with serving(environment, world) as queue:
        handle = await started(environment, queue, spec)
        return await handle.result()


def states(status: ExperimentStatus) -> list[str]:
    return [change.state for change in status.history]
