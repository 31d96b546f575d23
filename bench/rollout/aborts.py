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

from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from volary_cli.launcher.engines import TemporalEngine
from volary_cli.launcher.engines import free_port as engine_port
from volary_cli.launcher.engines import running as engine_running
from volary_kit.channels import Channels
from volary_kit.clock import SystemClock
from volary_kit.identity import TokenSource
from volary_kit.outgoing.dress import MeshDress
from volary_kit.webhooks import Webhooks
from volary_workflows.rollout.activities import RolloutActivities
from volary_workflows.rollout.messages import Command, Look, RolloutSpec, RolloutStatus, Step
from volary_workflows.rollout.tasks import JudgeTask, Preflight, StagingReport, Subject
from volary_workflows.starting import start_rollout
from volary_workflows.worker import make_worker, register_attributes

from bench.rollout.many import LOOK_S
from tests.unit.gateway.mesh import DIGEST, Mesh

QUEUE = "bench-aborts"
CALL_S, SERVED_S = 10.0, 60.0
HOUR_S = 3_600.0
NEARLY_ALL = 9_999  # one call that meets production again says that the traffic is back
CHECKED = 20  # and so many after it, that it stays there


class Prepared:
    """What a rollout asks before and beside its traffic."""

    def __init__(self, running: Mesh) -> None:
        self._running = running

    @activity.defn
    async def check_rollout(self, _spec: RolloutSpec) -> Preflight:
        """Let every rollout begin."""
        generation = (await self._running.get()).generation
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


class Caller:
    """One caller at the edge who pauses for as long as one who looks at pushes does."""

    def __init__(self, running: Mesh) -> None:
        self._stub = v2_grpc.GRPCInferenceServiceStub(running.edge())
        self._request = v2.ModelInferRequest(model_name=running.model)
        self._key = running.api_key()

    async def version(self) -> int:
        """Call once; return the version that answered."""
        reply = await self._stub.ModelInfer(self._request, metadata=self._key, timeout=CALL_S)
        return int(reply.model_version)

    async def until(self, version: int) -> None:
        """Call until a version answers."""
        async with asyncio.timeout(SERVED_S):
            while True:
                if await self.version() == version:
                    return
                await asyncio.sleep(LOOK_S)


async def aborts(folder: Path, running: Mesh, times: int) -> list[float]:
    """Return the seconds from each abort until no call met the candidate any more."""
    tokens = TokenSource(running.keys["workflows"], SystemClock())
    channels = Channels("workflows", {"gateway": f"127.0.0.1:{running.port}"}, MeshDress(tokens))
    rollout = RolloutActivities(channels, Webhooks([]), SystemClock())
    prepared = Prepared(running)
    activities: list[Callable[..., Any]] = [
        prepared.check_rollout,
        prepared.stage_version,
        prepared.judge_rollout,
        rollout.load_version,
        rollout.unload_version,
        rollout.set_traffic,
        rollout.read_traffic,
    ]
    caller = Caller(running)
    async with temporal(folder) as client:
        try:
            async with make_worker(client, activities, task_queue=QUEUE):
                await _abort(client, running, caller)  # the first one loads code, and is not kept
                return [await _abort(client, running, caller) for _ in range(times)]
        finally:
            await channels.close()


async def _abort(client: Client, running: Mesh, caller: Caller) -> float:
    step = Step(NEARLY_ALL, HOUR_S, 1)
    spec = RolloutSpec(running.model, 2, steps=[step], poll_s=HOUR_S, requested_by="bench")
    handle = await start_rollout(client, spec, task_queue=QUEUE)
    await _until_watching(handle, caller)
    began = time.perf_counter()
    aborting = asyncio.create_task(
        handle.execute_update("abort", Command("bench"), result_type=RolloutStatus)
    )
    await caller.until(1)
    taken = time.perf_counter() - began
    if any([await caller.version() != 1 for _ in range(CHECKED)]):
        raise AssertionError("a call met the candidate after one had met production")
    await aborting
    ended = await handle.result()
    if ended.state != "ABORTED":
        raise AssertionError(f"the rollout ended {ended.state}: {ended.reason}")
    return taken


async def _until_watching(handle: WorkflowHandle[Any, RolloutStatus], caller: Caller) -> None:
    """Wait until the candidate answers, and the workflow knows it and waits for evidence."""
    async with asyncio.timeout(SERVED_S):
        while True:
            status = await handle.query("status", result_type=RolloutStatus)
            if status.weight == NEARLY_ALL:
                break
            if status.state in ("FAILED", "ROLLED_BACK"):
                raise AssertionError(f"the rollout did not come to its step: {status}")
            await asyncio.sleep(0.05)
    await caller.until(2)
