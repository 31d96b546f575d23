"""A mesh of thousands of models behind one Envoy: gateway as it is deployed, with its Postgres."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.gateway.v1 import (
    replica_pb2,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2,
    traffic_service_pb2_grpc,
)
from volary_cli.launcher.engines import PostgresEngine
from volary_cli.launcher.engines import free_port as engine_port
from volary_cli.launcher.engines import running as engine_running
from volary_gateway import tables
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import TOTAL, Traffic, Weight
from volary_gateway.store import traffic as traffic_rows
from volary_kit.database import Database
from volary_kit.migrations import migrate, migrations_of

from bench.load.generator import REPLICA, binary
from tests.unit.gateway.mesh import DIGEST, Mesh, mesh
from tests.unit.gateway.rig import free_port

PASSWORD = "bench"  # noqa: S105 - of an engine that lives for a minute on loopback
PROJECT = "default"
ROLLING = 64  # models with two versions, of which one is a candidate; the others have one
REPORT_S = 3.0
READY_S = 200.0
CALL_S = 10.0
LOOK_S = 0.001  # between two looks at who answers: the looking shares the processors with the rest
TIMING = "server-timing"
Writing = grpc.aio.UnaryUnaryCall[Any, traffic_pb2.Traffic]


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[str]:
    """Run a Postgres with gateway's tables; a write is durable before it is answered."""
    engine = PostgresEngine(folder / "postgres", engine_port(), PASSWORD)
    async with engine_running(engine, folder / "postgres.log"):
        await migrate(engine.url(), "gateway", migrations_of("volary_gateway"))
        yield engine.url()


@asynccontextmanager
async def replica() -> AsyncIterator[str]:
    """Run a replica as a process, one that takes little of what it shares; give its address."""
    port = free_port()
    process = start_replica([await binary(REPLICA)], port)
    try:
        await until_answers(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def start_replica(words: Sequence[str | Path], port: int) -> subprocess.Popen[bytes]:
    """Start a replica on a port; it ends with its standard input."""
    return subprocess.Popen([*words, str(port)], stdin=subprocess.PIPE)


async def until_answers(address: str) -> None:
    """Wait until somebody listens."""
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 60)


def names(models: int) -> list[ModelName]:
    """Return the names of so many models."""
    return [ModelName(PROJECT, f"m{n:04d}") for n in range(models)]


def versions_of(models: list[ModelName]) -> list[VersionName]:
    """Return the versions that a replica holds: a second one of the models that roll."""
    found = [VersionName.of(name, 1) for name in models]
    return found + [VersionName.of(name, 2) for name in models[:ROLLING]]


async def seed(url: str, models: list[ModelName]) -> None:
    """Store the versions of each model, the first in production."""
    stored = Database(url, "gateway")
    wanted = [
        {"project": v.project, "model": v.model, "version": v.version, "digest": DIGEST}
        for v in versions_of(models)
    ]
    async with stored.transaction() as transaction:
        await transaction.execute(sa.insert(tables.desired_versions), wanted)
        for at, name in enumerate(models):
            shares = (Weight(1, TOTAL - 1), Weight(2, 1)) if at < ROLLING else (Weight(1, TOTAL),)
            await traffic_rows.save(transaction, Traffic(name, 1, shares, production=1), "")
    await stored.close()


class Attached:
    """A replica that has every version ready."""

    def __init__(self, running: Mesh, address: str, models: list[ModelName]) -> None:
        self._running = running
        self._report = replica_service_pb2.AttachRequest(
            replica_id="replica-0",
            address=address,
            incarnation="one",
            versions=[
                replica_pb2.LoadedVersion(
                    project=version.project,
                    model=version.model,
                    version=version.version,
                    digest=DIGEST,
                    state=replica_pb2.VERSION_STATE_READY,
                )
                for version in versions_of(models)
            ],
        )

    async def attach(self) -> None:
        """Report for as long as the task lives."""
        channel = self._running.direct("inference")
        await asyncio.wait_for(channel.channel_ready(), READY_S)
        stub = replica_service_pb2_grpc.ReplicaServiceStub(channel)
        stream = stub.Attach(metadata=self._running.as_service("inference"))
        await stream.write(self._report)
        state = await stream.read()
        if isinstance(state, replica_pb2.DesiredState) and state.takes_unchanged:
            self._report.ClearField("versions")
            self._report.versions_unchanged = True
        while True:
            await asyncio.sleep(REPORT_S)
            await stream.write(self._report)


@dataclass(frozen=True)
class Change:
    """A change of traffic: seconds until a caller met it, and where they went.

    `stages` are gateway's own, then `call` (transport, authentication, validation) and `effect`:
    how long after gateway's reply the caller met it, which is often before. Of all of them `look`
    is how long the caller's own call took that met it.
    """

    seconds: float
    stages: Mapping[str, float]

    @property
    def begun_s(self) -> float:
        """Seconds until the call began that met it."""
        return self.seconds - self.stages["look"]


def stages_of(timing: str) -> dict[str, float]:
    """Return the seconds of each stage of a `server-timing`."""
    found: dict[str, float] = {}
    for part in timing.split(", "):
        name, _, taken = part.partition(";dur=")
        found[name] = float(taken) / 1e3
    return found


class Steps:
    """Changes of one model at a time, timed until a caller meets the other version."""

    def __init__(self, running: Mesh, models: list[ModelName]) -> None:
        self._models = models
        self.rolling = models[:ROLLING]
        self.generation = dict.fromkeys(models, 1)
        self._leading = dict.fromkeys(models, 1)
        self._edge = v2_grpc.GRPCInferenceServiceStub(running.edge())
        self._key = running.api_key()
        self._traffic = traffic_service_pb2_grpc.TrafficServiceStub(running.direct("bench"))
        self._token = running.as_service()

    async def begin(self) -> None:
        """Wait until every cluster is there: the last one is that of the last model."""
        for name in (self._models[0], self._models[-1]):
            await self.until_served_by(name, 1)

    async def step(self, at: int) -> Change:
        """Turn a model's traffic round, until a call meets the other version."""
        name = self.rolling[at % len(self.rolling)]
        version = 3 - self._leading[name]
        request = traffic_service_pb2.SetTrafficRequest(
            name=f"{name}/traffic",
            expected_generation=self.generation[name],
            weights=[
                traffic_pb2.Weight(version=version, weight=TOTAL - 1),
                traffic_pb2.Weight(version=3 - version, weight=1),
            ],
            rollout=f"projects/{PROJECT}/rollouts/r1",
            step="canary",
            cause=traffic_pb2.CAUSE_STEP,
            production_version=1,
        )
        began = time.perf_counter()
        writing = self._traffic.SetTraffic(request, metadata=self._token, timeout=CALL_S)
        return await self._timed(name, version, began, writing)

    async def brake(self, at: int) -> Change:
        """Take everything from a candidate, until a call meets production."""
        name = self.rolling[at % len(self.rolling)]
        if self._leading[name] == 1:
            await self.step(at)
        request = traffic_service_pb2.BrakeRequest(name=f"{name}/traffic", version=2, weight=0)
        began = time.perf_counter()
        writing = self._traffic.Brake(request, metadata=self._token, timeout=CALL_S)
        return await self._timed(name, 1, began, writing)

    async def _timed(self, name: ModelName, version: int, began: float, writing: Writing) -> Change:
        ended: list[float] = []
        writing.add_done_callback(lambda _call: ended.append(time.perf_counter()))
        look_s = await self.until_served_by(name, version)
        seen = time.perf_counter()
        written = await writing
        if not written.in_effect:
            raise AssertionError(f"the push is not in effect: {written}")
        self.generation[name], self._leading[name] = written.generation, version
        stages = stages_of(str(dict(await writing.trailing_metadata())[TIMING]))
        stages["call"] = ended[0] - began - sum(stages.values())
        stages["effect"] = max(0.0, seen - ended[0])
        stages["look"] = look_s
        return Change(seen - began, stages)

    async def until_served_by(self, name: ModelName, version: int) -> float:
        """Call until a version answers; return how long the call took that it answered."""
        return await until_served_by(self._edge, self._key, name, version)


async def until_served_by(
    edge: v2_grpc.GRPCInferenceServiceStub,
    key: Sequence[tuple[str, str]],
    name: ModelName,
    version: int,
    *,
    within_s: float = READY_S,
) -> float:
    """Call a model at the edge until a version answers; return how long that last call took."""
    request = v2.ModelInferRequest(model_name=name.model)
    end = time.monotonic() + within_s
    while True:
        began = time.perf_counter()
        call = edge.ModelInfer(request, metadata=key, timeout=CALL_S)
        try:
            if (await call).model_version == str(version):
                return time.perf_counter() - began
            await asyncio.sleep(LOOK_S)
        except grpc.aio.AioRpcError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Many:
    """A running mesh of many models."""

    running: Mesh
    steps: Steps
    replica: str

    @property
    def edge(self) -> str:
        """Where Envoy listens."""
        return f"127.0.0.1:{self.running.edge_port}"

    def received(self) -> int:
        """Return the bytes that the control plane has sent to Envoy, frames and all."""
        name = "cluster.gateway-control.upstream_cx_rx_bytes_total"
        return self.running.envoy.stats(name)[name]


@asynccontextmanager
async def mesh_of_many(folder: Path, models: int) -> AsyncIterator[Many]:
    """Run a mesh of so many models on one replica."""
    known = names(models)
    async with database(folder) as url, replica() as address:
        await seed(url, known)
        async with mesh(folder, url, []) as running:
            attaching = asyncio.create_task(Attached(running, address, known).attach())
            many = Many(running, Steps(running, known), address)
            try:
                await many.steps.begin()
                yield many
            finally:
                attaching.cancel()
