"""Failed calls while traffic is pushed and replicas and the control plane are killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference import grpc_service_pb2 as v2

from bench.cores import Cores
from bench.load.generator import Outcome, Target, built
from bench.report import say
from bench.rollout.chains import PATH
from bench.rollout.many import database, start_replica, until_answers
from tests.unit.gateway.mesh import Mesh, mesh
from tests.unit.gateway.rig import free_port, until

WHOLE = 10_000
SHARES = (100, 1_000, 5_000, WHOLE, 0)
BACK_S = 30.0
CALL_MS = 10_000
CALLERS = 4


@dataclass(frozen=True)
class Place:
    """Where a replica listens, whichever process it is."""

    port: int

    @property
    def address(self) -> str:
        """Return host:port."""
        return f"127.0.0.1:{self.port}"


class Attached:
    """Processes that gateway knows as replicas; each can be killed and started again."""

    def __init__(self, number: int) -> None:
        self.backends: list[Any] = [Place(free_port()) for _ in range(number)]
        self.processes = [start_replica(each.port) for each in self.backends]

    async def kill_and_restart(self, at: int) -> None:
        """Kill -9 one process and start it again on its port."""
        self.processes[at].kill()
        self.processes[at].wait()
        self.processes[at] = start_replica(self.backends[at].port)
        await until_answers(self.backends[at].address)

    def close(self) -> None:
        """End every process."""
        for process in self.processes:
            process.kill()
            process.wait()


async def under_faults(folder: Path, seconds: float, pushes: int) -> dict[str, float]:
    """Send calls for so long; raise the failed ones to a figure beside what was done meanwhile."""
    async with database(folder) as url:
        attached = Attached(2)
        try:
            for backend in attached.backends:
                await until_answers(backend.address)
            async with mesh(folder, url, attached.backends) as running:
                return await _measured(folder, running, attached, seconds, pushes)
        finally:
            attached.close()


async def _measured(
    folder: Path, running: Mesh, attached: Attached, seconds: float, pushes: int
) -> dict[str, float]:
    await asyncio.wait_for(running.direct("bench").channel_ready(), 60)
    await running.load(1, 2)
    await running.set(0, (1, WHOLE))
    body = folder / "call"
    body.write_bytes(v2.ModelInferRequest(model_name=running.model).SerializeToString())
    target = Target(f"127.0.0.1:{running.edge_port}", PATH, body, dict(running.api_key()))
    generator = await built(Cores.pick().rest)
    options = {"concurrency": CALLERS, "timeout_ms": CALL_MS, "warmup": 0}
    calling = asyncio.create_task(generator.run(target, seconds=seconds, **options))
    pushed, killed = await _trouble(running, attached, time.monotonic() + seconds, pushes)
    outcome = await calling
    if outcome.failed:
        say(f"failed calls by code: {dict(outcome.codes)}")
    return figures(outcome) | {"pushes_under_faults": pushed, "kills_under_faults": killed}


def figures(outcome: Outcome) -> dict[str, float]:
    """Return what became of the calls."""
    return {
        "failed_calls_under_faults": outcome.failed,
        "calls_under_faults": outcome.ok + outcome.failed,
        "calls_per_s_under_faults": outcome.ok_per_s,
    }


async def _trouble(running: Mesh, attached: Attached, end: float, pushes: int) -> tuple[int, int]:
    """Push and kill in turn until the time is over, the pushes spread over all of it."""
    clusters = [f"cluster.version/default/{running.model}/{v}.membership_healthy" for v in (1, 2)]
    generation, pushed, killed = 1, 0, 0
    rounds = pushes // len(SHARES)
    pause_s = (end - time.monotonic()) / rounds
    while time.monotonic() < end:
        began = time.monotonic()
        for share in SHARES:
            after = await running.set(generation, (2, share), (1, WHOLE - share))
            generation, pushed = after.generation, pushed + 1
        await attached.kill_and_restart((killed // 2) % len(attached.processes))
        await until(lambda: _least(running, clusters) == len(attached.backends), BACK_S)
        running.kill_gateway()
        running.start_gateway()
        await running.get()
        killed += 2
        left_s = min(end, began + pause_s) - time.monotonic()
        await asyncio.sleep(max(0.0, left_s))
    return pushed, killed


def _least(running: Mesh, clusters: Sequence[str]) -> int:
    stats = running.envoy.stats("membership_healthy")
    return min(stats.get(name, 0) for name in clusters)
