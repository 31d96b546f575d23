"""A world for retrains: same-name activities that remember what they were asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from temporalio import activity
from temporalio.exceptions import ApplicationError
from volary_workflows.judge.inputs import GateRule
from volary_workflows.retrain.messages import (
    Abandoned,
    Begun,
    BuildTask,
    Built,
    GateLook,
    GateTask,
    Pulled,
    PullTask,
    Retrain,
    RetrainStatus,
    Trained,
    TrainingPlan,
    TrainTask,
)
from volary_workflows.rollout.messages import RolloutSpec, Step

from tests.unit.workflows.rollout.world import HOUR_S, World
from tests.unit.workflows.serving import serving

DAY_US = 86_400_000_000
PLAN = TrainingPlan(
    model="delays",
    feature_set="delays",
    sources=["planes", "landings"],
    spine={"source": "landings"},
    start_us=0,
    holdout_us=7 * DAY_US,
    gate=GateRule(),
    floors={"auc": 0.6},
    rollout=RolloutSpec("delays", 1, steps=[Step(1_000, HOUR_S)], bake_s=HOUR_S, poll_s=HOUR_S),
)
ASKED = Retrain("delays", trigger="alert", until_us=100 * DAY_US, alert="projects/default/alerts/a")


@dataclass
class RetrainWorld:
    """What the fakes remember; the rollout runs in a world of its own."""

    rollouts: World = field(default_factory=World)
    plan: TrainingPlan = PLAN
    gate: str = "PASS"
    failing: str = ""
    failure: str = "NO"
    endless: str = ""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: list[str] = field(default_factory=list)
    running: dict[str, str] = field(default_factory=dict)
    late_version: int = 0
    abandoned: list[Begun] = field(default_factory=list)
    pulls: list[PullTask] = field(default_factory=list)
    builds: list[BuildTask] = field(default_factory=list)
    trainings: list[TrainTask] = field(default_factory=list)
    gates: list[GateTask] = field(default_factory=list)

    @activity.defn
    async def read_training(self, retrain: Retrain) -> TrainingPlan:
        return self.plan

    @activity.defn
    async def pull_source(self, task: PullTask) -> Pulled:
        self.pulls.append(task)
        await self.worked("pull_source", task.request_id)
        return Pulled(task.source, f"snapshot-of-{task.source}", 10, 90 * DAY_US)

    @activity.defn
    async def build_training_set(self, task: BuildTask) -> Built:
        self.builds.append(task)
        await self.worked("build_training_set", task.request_id)
        return Built(f"projects/default/trainingSets/{len(self.builds)}", 5_000)

    @activity.defn
    async def train(self, task: TrainTask) -> Trained:
        self.trainings.append(task)
        await self.worked("train", task.request_id)
        return Trained("projects/default/runs/r", 2, {"auc": 0.7})

    @activity.defn
    async def judge_gate(self, task: GateTask) -> GateLook:
        self.gates.append(task)
        await self.worked("judge_gate", task.request_id)
        return GateLook(self.gate, ["CODE"], ["because"], task.key, 1, 5_000)

    async def worked(self, name: str, request_id: str) -> None:
        """Follow an operation: it fails, or has no end, where the story says so."""
        self.running[request_id] = name
        if name == self.failing:
            raise ApplicationError("no", type=self.failure, non_retryable=True)
        if name == self.endless:
            self.reached.set()
            try:
                while True:
                    await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise
        del self.running[request_id]

    @activity.defn
    async def abandon_operation(self, begun: Begun) -> Abandoned:
        self.abandoned.append(begun)
        name = self.running.pop(begun.request_id, "")
        if name == "train" and self.late_version:
            return Abandoned(f"operations/{name}", "projects/default/runs/r", self.late_version)
        return Abandoned(f"operations/{name}" if name else "")

    def activities(self):
        return [
            *self.rollouts.activities(),
            self.read_training,
            self.pull_source,
            self.build_training_set,
            self.train,
            self.judge_gate,
            self.abandon_operation,
        ]


async def started(environment, queue, retrain=ASKED):
    return await environment.client.start_workflow(
        "RetrainWorkflow",
        retrain,
        id=f"retrain/{queue}",
        task_queue=queue,
        result_type=RetrainStatus,
    )


async def retrained(environment, world, retrain=ASKED) -> RetrainStatus:
    """Run one retrain to its end."""
    async with serving(environment, world) as queue:
        return await (await started(environment, queue, retrain)).result()
