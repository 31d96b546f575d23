"""What a change of traffic costs, through a real Envoy: `python -m bench.rollout.envoy`.

Control plane, client and the measuring loop share this machine with Envoy: every time is an
upper bound of what Envoy and gateway take. `--quick` takes about a minute.
"""

# pyright: reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary_cli.launcher.engines import PostgresEngine
from volary_cli.launcher.engines import free_port as engine_port
from volary_cli.launcher.engines import running as engine_running
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Cause, Traffic, Weight
from volary_gateway.xds.mesh import Mesh, snapshot_of
from volary_kit.migrations import migrate, migrations_of

from bench.report import Goal, Line, header, print_lines, say
from bench.rollout.many import (
    Change,
    mesh_of_many,
    replica,
    start_replica,
    until_answers,
    until_served_by,
)
from tests.unit.gateway.mesh import Mesh as GatewayMesh
from tests.unit.gateway.mesh import mesh as gateway_mesh
from tests.unit.gateway.rig import Rig, free_port, rig, until

MODELS = 2_000
WARM = 5
WHOLE = 10_000
CONVERGE_S = 60.0
CALL_S = 10.0
PASSWORD = "bench"  # noqa: S105 - of an engine that lives for a minute on loopback


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    pushes: int
    brakes: int
    compared: int
    faults_s: float
    calls: int  # that the time under faults should be enough for


QUICK = Plan(pushes=100, brakes=30, compared=1_000, faults_s=12.0, calls=2_000)
FULL = Plan(pushes=1_000, brakes=200, compared=10_000, faults_s=1_200.0, calls=1_000_000)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def serve_one(running: Rig, address: str) -> ModelName:
    """Serve one model on one replica; return its name once it answers at the edge."""
    name = ModelName("default", "m0000")
    weights = (Weight(1, WHOLE), Weight(2, 0))
    traffic = Traffic(name, 1, weights, production=1, rollout="r1", step="canary", cause=Cause.SET)
    ready = {VersionName.of(name, version): (address,) for version in (1, 2)}
    snapshot = snapshot_of(Mesh(running.edge, (traffic,), ready, (address,)))
    running.plane.publish(snapshot)
    if not await running.plane.converge(snapshot, CONVERGE_S):
        raise AssertionError(f"Envoy does not take the snapshot: {running.plane.rejections}")
    stub = v2_grpc.GRPCInferenceServiceStub(running.channel())
    key = (("x-api-key", running.token()),)
    await until_served_by(stub, key, name, 1, within_s=CONVERGE_S)
    return name


async def pushes(folder: Path, plan: Plan) -> dict[str, float]:
    """Measure steps and brakes at 2,000 models, from the call to gateway until a caller sees it."""
    async with mesh_of_many(folder, MODELS) as many:
        for at in range(WARM):
            await many.steps.step(at)
        before = many.received()
        taken = [await many.steps.step(n * 37) for n in range(plan.pushes)]
        received = many.received() - before
        braked = [await many.steps.brake(n * 41 + 1) for n in range(plan.brakes)]
    return {
        "push_p50_ms_2000_models": quantile([each.seconds for each in taken], 0.5) * 1e3,
        "push_p99_ms_2000_models": quantile([each.seconds for each in taken], 0.99) * 1e3,
        "push_bytes": received / len(taken),
        "brake_p50_ms": quantile([each.seconds for each in braked], 0.5) * 1e3,
        "brake_ms": quantile([each.seconds for each in braked], 0.99) * 1e3,
        "pushes": len(taken),
        "brakes": len(braked),
        **by_stage("push", taken),
        **by_stage("brake", braked),
    }


def by_stage(what: str, changes: Sequence[Change]) -> dict[str, float]:
    """Return the median and the 99th percentile of each stage."""
    found: dict[str, float] = {}
    for stage in changes[0].stages:
        taken = [change.stages[stage] * 1e3 for change in changes]
        found[f"{what}_{stage}_p50_ms"] = quantile(taken, 0.5)
        found[f"{what}_{stage}_p99_ms"] = quantile(taken, 0.99)
    return found


async def added(folder: Path, plan: Plan) -> dict[str, float]:
    """Measure what Envoy adds to a call, turn about with calls that go direct."""
    async with replica() as address, rig(folder) as running:
        name = await serve_one(running, address)
        request = v2.ModelInferRequest(model_name=name.model)
        direct = grpc.aio.insecure_channel(address)
        stubs = [v2_grpc.GRPCInferenceServiceStub(each) for each in (direct, running.channel())]
        key = (("x-api-key", running.token()),)
        taken: list[list[float]] = [[], []]
        for _ in range(plan.compared):
            for at, stub in enumerate(stubs):
                began = time.perf_counter()
                await stub.ModelInfer(request, metadata=key, timeout=CALL_S)
                taken[at].append(time.perf_counter() - began)
        await direct.close()
    straight, through = (quantile(each, 0.5) * 1e6 for each in taken)
    return {"envoy_added_p50_us": through - straight, "direct_p50_us": straight}


class Callers:
    """Callers that never pause; every failure is kept."""

    def __init__(
        self,
        stub: v2_grpc.GRPCInferenceServiceStub,
        key: tuple[tuple[str, str], ...],
        model: str,
    ) -> None:
        self._stub, self._key = stub, key
        self._request = v2.ModelInferRequest(model_name=model)
        self.calls = 0
        self.failures: list[str] = []
        self.is_over = False

    async def run(self) -> None:
        while not self.is_over:
            try:
                await self._stub.ModelInfer(self._request, metadata=self._key, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            self.calls += 1


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
        for process in self.processes:
            process.kill()
            process.wait()


async def faults(folder: Path, plan: Plan) -> dict[str, float]:
    """Count failed calls while traffic is pushed, replicas and the control plane are killed."""
    engine = PostgresEngine(folder / "postgres", engine_port(), PASSWORD, {"fsync": "off"})
    async with engine_running(engine, folder / "postgres.log"):
        await migrate(engine.url(), "gateway", migrations_of("volary_gateway"))
        attached = Attached(2)
        try:
            for backend in attached.backends:
                await until_answers(backend.address)
            async with gateway_mesh(folder, engine.url(), attached.backends) as running:
                return await _under_faults(running, attached, plan)
        finally:
            attached.close()


async def _under_faults(running: GatewayMesh, attached: Attached, plan: Plan) -> dict[str, float]:
    await asyncio.wait_for(running.direct("bench").channel_ready(), 60)
    await running.load(1, 2)
    await running.set(0, (1, WHOLE))
    clusters = [f"cluster.version/default/{running.model}/{v}.membership_healthy" for v in (1, 2)]
    await until(lambda: _least(running, clusters) == len(attached.backends), 30)
    stub = v2_grpc.GRPCInferenceServiceStub(running.edge())
    callers = Callers(stub, running.api_key(), running.model)
    tasks = [asyncio.create_task(callers.run()) for _ in range(4)]
    end = time.monotonic() + plan.faults_s
    generation, pushed, killed = 1, 0, 0
    while time.monotonic() < end:
        for share in (100, 1_000, 5_000, WHOLE, 0):
            after = await running.set(generation, (2, share), (1, WHOLE - share))
            generation, pushed = after.generation, pushed + 1
        await attached.kill_and_restart(killed % len(attached.processes))
        await until(lambda: _least(running, clusters) == len(attached.backends), 30)
        running.kill_gateway()
        running.start_gateway()
        await running.get()
        killed += 1
    callers.is_over = True
    await asyncio.gather(*tasks)
    return {
        "failed_calls_under_faults": len(callers.failures),
        "calls_under_faults": callers.calls,
        "pushes_under_faults": pushed,
        "kills_under_faults": 2 * killed,
    }


def _least(running: GatewayMesh, clusters: Sequence[str]) -> int:
    stats = running.envoy.stats("membership_healthy")
    return min(stats.get(name, 0) for name in clusters)


async def measure(plan: Plan) -> dict[str, float]:
    """Return every figure by name."""
    found: dict[str, float] = {}
    for part in (pushes, added, faults):
        with tempfile.TemporaryDirectory(prefix="volary-bench-") as folder:
            began = time.monotonic()
            found |= await part(Path(folder), plan)
            say(f"{part.__name__}: {time.monotonic() - began:.0f} s")
    return found


def lines_of(found: dict[str, float], plan: Plan) -> list[Line]:
    """Return the figures as lines, each with its goal."""

    def own(name: str, unit: str, goal: Goal) -> Line:
        return Line(name, found[name], unit, goal)

    return [
        own("push_p99_ms_2000_models", "ms", Goal("<=", 10, "ours")),
        own("push_bytes", "bytes", Goal("<=", 500, "ours")),
        own("brake_ms", "ms", Goal("<=", 10, "ours")),
        own("failed_calls_under_faults", "calls", Goal("<=", 0, "ours")),
        own("calls_under_faults", "calls", Goal(">=", plan.calls, "ours")),
        Line(
            "envoy_added_p50_us",
            found["envoy_added_p50_us"],
            "us",
            Goal("<=", 1.0),
            found["direct_p50_us"],
            "the same call, direct",
        ),
    ]


def main() -> None:
    """Print the lines; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    top = header("bench rollout, the lines of Envoy")
    found = asyncio.run(measure(plan))
    notes = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print_lines([*top, notes], lines_of(found, plan), as_json=options.as_json)


if __name__ == "__main__":
    main()
