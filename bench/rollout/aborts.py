"""From the word of a person through Temporal, workflow, activity and gateway to a caller.

Temporal, the workflow, the activities that write traffic, gateway and Envoy are the real ones; what
comes before the first step (the registry's word, staging, the judge's looks) is answered here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from volary_cli.launcher.engines import TemporalEngine
from volary_cli.launcher.engines import free_port as engine_port
from volary_cli.launcher.engines import running as engine_running
from volary_gateway.domain.names import ModelName
from volary_kit.channels import Channels
from volary_kit.clock import SystemClock
from volary_kit.identity import TokenSource
from volary_kit.outgoing.dress import MeshDress
from volary_workflows.rollout.activities import RolloutActivities
from volary_workflows.rollout.messages import Command, Look, RolloutSpec, RolloutStatus, Step
from volary_workflows.rollout.tasks import JudgeTask, Preflight, StagingReport, Subject
from volary_workflows.rollout.webhooks import Webhooks
from volary_workflows.starting import start_rollout
from volary_workflows.worker import make_worker, register_attributes

from bench.rollout.many import READY_S, Many, Steps
from tests.unit.gateway.mesh import DIGEST

QUEUE = "bench-aborts"
HOUR_S = 3_600.0
NEARLY_ALL = 9_999  # one call that meets production again says that the traffic is back


class Prepared:
    """What a rollout asks before and beside its traffic."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    @activity.defn
    async def check_rollout(self, spec: RolloutSpec) -> Preflight:
        """Let every rollout begin."""
        generation = self._steps.generation[ModelName(spec.project, spec.model)]
        return Preflight(DIGEST, 1, generation, "APPROVAL_STATE_APPROVED", "bench", [], [])

    @activity.defn
    async def stage_version(self, _subject: Subject) -> StagingReport:
        """Find nothing wrong."""
        return StagingReport(1, [])

    @activity.defn
    async def judge_rollout(self, _task: JudgeTask) -> Look:
        """Ask for more calls, for ever."""
        return Look("INCONCLUSIVE", ["NEEDS_MORE_CALLS"], ["wait"], more_calls=50, calls=1)


@asynccontextmanager
async def temporal(folder: Path) -> AsyncIterator[Client]:
    """Run a Temporal server whose state is a file."""
    ports = engine_port(), engine_port(), engine_port()
    engine = TemporalEngine(folder / "temporal", *ports, cache=folder)
    async with engine_running(engine, folder / "temporal.log"):
        client = await Client.connect(engine.address)
        await register_attributes(client)
        yield client


async def aborts(folder: Path, many: Many, times: int) -> list[float]:
    """Return the seconds from each abort until a call met production again."""
    tokens = TokenSource(many.running.keys["workflows"], SystemClock())
    addresses = {"gateway": f"127.0.0.1:{many.running.port}"}
    channels = Channels("workflows", addresses, MeshDress(tokens))
    rollout = RolloutActivities(channels, Webhooks([]), SystemClock())
    prepared = Prepared(many.steps)
    activities: list[Callable[..., Any]] = [
        prepared.check_rollout,
        prepared.stage_version,
        prepared.judge_rollout,
        rollout.load_version,
        rollout.unload_version,
        rollout.set_traffic,
        rollout.read_traffic,
    ]
    async with temporal(folder) as client:
        try:
            async with make_worker(client, activities, task_queue=QUEUE):
                # each of another model: an abort is the last that is known of its generation
                return [await _abort(client, many, at) for at in range(times)]
        finally:
            await channels.close()


async def _abort(client: Client, many: Many, at: int) -> float:
    name = many.steps.rolling[at]
    await many.steps.brake(at)  # everything is at production before the rollout begins
    step = Step(NEARLY_ALL, HOUR_S, 1)
    spec = RolloutSpec(name.model, 2, steps=[step], poll_s=HOUR_S, requested_by="bench")
    handle = await start_rollout(client, spec, task_queue=QUEUE)
    await _until_served(many, handle, name)
    began = time.perf_counter()
    aborting = asyncio.create_task(
        handle.execute_update("abort", Command("bench"), result_type=RolloutStatus)
    )
    await many.steps.until_served_by(name, 1)
    taken = time.perf_counter() - began
    await aborting
    await handle.result()
    return taken


async def _until_served(
    many: Many, handle: WorkflowHandle[Any, RolloutStatus], name: ModelName
) -> None:
    """Wait until the candidate answers; a rollout that ended before that is an error."""
    ending = asyncio.create_task(handle.result())
    serving = asyncio.create_task(many.steps.until_served_by(name, 2))
    await asyncio.wait({ending, serving}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not serving.done():
        serving.cancel()
        raise AssertionError(f"the rollout did not come to its step: {await handle.describe()}")
