"""The part of a mesh that a rollout needs, every process real, kept up by the launcher."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from temporalio.client import Client
from volary.gateway.v1 import (
    evidence_service_pb2_grpc,
    replica_pb2,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2,
    traffic_service_pb2_grpc,
)
from volary.registry.v1 import model_pb2, registry_service_pb2
from volary_cli.launcher.component import Health
from volary_cli.launcher.folder import MeshFolder
from volary_cli.launcher.identities import LAUNCHER, Identities
from volary_cli.launcher.mesh import Mesh, Options
from volary_cli.launcher.ports import address
from volary_cli.launcher.processes import Command
from volary_cli.launcher.settings import LauncherSettings
from volary_cli.launcher.supervisor import Supervisor
from volary_client import AsyncClient
from volary_kit.channels import Channels
from volary_kit.clock import SystemClock
from volary_kit.errors import FailedPrecondition, NotFound, VolaryError
from volary_kit.identity import TokenSource
from volary_kit.outgoing import MeshDress
from volary_kit.testing import eventually

from tests.unit.inference.graphs import sigmoid_sum

REPLICAS = 2
NEEDED = frozenset(
    {"postgres", "redis", "temporal", "registry", "monitor", "gateway", "workflows", "envoy"}
    | {f"inference-{i}" for i in range(REPLICAS)}
)
MODEL = "tiny"
WIDTH = 3
PARENT = "projects/default"
MODEL_NAME = f"{PARENT}/models/{MODEL}"
TRAFFIC = f"{MODEL_NAME}/traffic"
VERSIONS = (1, 2)
# grpc's own handlers of fork abort the child when a call runs in another thread
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
READY_S = 90.0  # seconds of imports on a machine that is busy with other tests
CALL_S = 2.0


def version_name(version: int) -> str:
    """Return the resource name of a version of the model."""
    return f"{MODEL_NAME}/versions/{version}"


class RolloutMesh:
    """Processes that can be killed, and clients of what is behind Envoy."""

    def __init__(self, folder: MeshFolder, port_base: int) -> None:
        self.folder = folder
        options = Options(
            folder, LauncherSettings.read(), port_base, replicas=REPLICAS, has_failpoints=True
        )
        self._mesh = Mesh(options)
        self._components = {
            each.name: replace(each, needs=tuple(n for n in each.needs if n in NEEDED))
            for each in self._mesh.components()
            if each.name in NEEDED
        }
        self.supervisor = Supervisor(tuple(self._components.values()), folder.turn_log, _untold)
        tokens = TokenSource(Identities(folder).key(LAUNCHER), SystemClock())
        gateway = address(self._components["gateway"].ports["data"])
        self._channels = Channels(LAUNCHER, {"gateway": gateway}, MeshDress(tokens))
        self.traffic = traffic_service_pb2_grpc.TrafficServiceStub(self._channels.to("gateway"))
        self.replicas = replica_service_pb2_grpc.ReplicaServiceStub(self._channels.to("gateway"))
        self.evidence = evidence_service_pb2_grpc.EvidenceServiceStub(self._channels.to("gateway"))

    @property
    def edge(self) -> str:
        """Envoy's client address."""
        return address(self._components["envoy"].ports["data"])

    @property
    def edge_admin(self) -> str:
        """Envoy's admin address."""
        return address(self._components["envoy"].ports["admin"])

    @property
    def api_key(self) -> str:
        """The key of a developer, as the launcher made it."""
        return self.folder.api_key() or ""

    @property
    def failpoints(self) -> Path:
        """Where a file holds an activity of the worker."""
        return self.folder.service("workflows") / "failpoints"

    async def start(self) -> None:
        """Start everything and put version 1 into production."""
        await self._mesh.prepare()
        self.failpoints.mkdir(parents=True, exist_ok=True)
        await self.supervisor.start()
        async with AsyncClient(self.edge, self.api_key, timeout_s=30) as client:
            await registered(client, MODEL)
        await self._first_production()

    async def stop(self) -> None:
        """Stop everything."""
        await self._channels.close()
        await self.supervisor.stop()

    async def temporal(self) -> Client:
        """Return a client of Temporal."""
        return await Client.connect(address(self._components["temporal"].ports["data"]))

    def pid(self, component: str) -> int:
        """Return the process id of a component that runs."""
        pid = self.supervisor.conditions[component].pid
        assert pid is not None, f"{component} does not run"
        return pid

    def signal(self, component: str, number: signal.Signals) -> int:
        """Send a signal to a component's process; return its id."""
        pid = self.pid(component)
        os.kill(pid, number)
        return pid

    async def back(self, component: str, before: int) -> None:
        """Wait until the launcher has brought a component back."""

        async def is_back() -> bool:
            condition = self.supervisor.conditions[component]
            return condition.pid not in (None, before) and condition.health is Health.READY

        await eventually(is_back, within_s=READY_S, what=f"{component} ready again")

    async def second_worker(self) -> str:
        """Start one more worker beside the first; return its name."""
        first = self._components["workflows"]

        def command() -> Command:
            given = first.command()
            env = {key: value for key, value in given.env.items() if not key.endswith("_PORT")}
            return replace(given, env=env)

        second = replace(first, name="workflows-b", ports={}, command=command)
        await self.supervisor.add(second)
        condition = self.supervisor.conditions[second.name]
        await asyncio.wait_for(condition.usable.wait(), READY_S)
        return second.name

    async def now(self) -> traffic_pb2.Traffic:
        """Return the model's traffic; raise VolaryError while gateway is away."""
        request = traffic_service_pb2.GetTrafficRequest(name=TRAFFIC)
        return await self.traffic.GetTraffic(request, timeout=CALL_S)

    async def listed(self) -> list[replica_pb2.Replica]:
        """Return the replicas as gateway knows them."""
        request = replica_service_pb2.ListReplicasRequest(parent=PARENT)
        return list((await self.replicas.ListReplicas(request, timeout=CALL_S)).replicas)

    async def settled(self) -> int:
        """Wait until all is whole and only production is loaded; return its version."""

        async def is_whole() -> bool:
            try:
                traffic = await self.now()
                for version in VERSIONS:
                    if version != traffic.production_version:
                        await self._let_go(version)
                replicas = await self.listed()
            except VolaryError:
                return False
            is_up = all(c.health is Health.READY for c in self.supervisor.conditions.values())
            wanted = {traffic.production_version: replica_pb2.VERSION_STATE_READY}
            return (
                is_up
                and traffic.in_effect
                and len(replicas) == REPLICAS
                and all({v.version: v.state for v in r.versions} == wanted for r in replicas)
            )

        await eventually(is_whole, within_s=READY_S, what="a whole mesh")
        return (await self.now()).production_version

    async def _let_go(self, version: int) -> None:
        request = replica_service_pb2.UnloadVersionRequest(name=version_name(version))
        try:
            await self.replicas.UnloadVersion(request, timeout=CALL_S)
        except (FailedPrecondition, NotFound):
            return

    async def _first_production(self) -> None:
        name = version_name(1)
        digest = await self._digest(1)
        await self.replicas.LoadVersion(
            replica_service_pb2.LoadVersionRequest(name=name, digest=digest)
        )

        async def is_ready() -> bool:
            request = replica_service_pb2.GetVersionReadinessRequest(name=name)
            seen = await self.replicas.GetVersionReadiness(request)
            return seen.ready_replicas == REPLICAS

        await eventually(is_ready, within_s=READY_S, what="version 1 on every replica")
        await self.traffic.SetTraffic(
            traffic_service_pb2.SetTrafficRequest(
                name=TRAFFIC,
                weights=[traffic_pb2.Weight(version=1, weight=10_000)],
                production_version=1,
                cause=traffic_pb2.CAUSE_SET,
            ),
            timeout=READY_S / 3,
        )

    async def _digest(self, version: int) -> str:
        async with AsyncClient(self.edge, self.api_key) as client:
            request = registry_service_pb2.GetModelVersionRequest(name=version_name(version))
            return (await client.registry.GetModelVersion(request)).digest


async def registered(
    client: AsyncClient,
    model: str,
    serving: str = "",
    graph: Callable[[int, float], bytes] = sigmoid_sum,
) -> None:
    """Register a model and two versions of it, which differ by their bias."""
    attachments: dict[str, str] = {}
    if serving:
        declared = await client.upload(serving.encode(), model_pb2.ARTIFACT_KIND_DOCUMENT)
        attachments["serving"] = declared.digest
    await client.registry.CreateModel(
        registry_service_pb2.CreateModelRequest(
            parent=PARENT, model_id=model, model=model_pb2.Model(owner="team", on_call="pager")
        )
    )
    rows = [model_pb2.TensorSpec(name="features", datatype="FP32", shape=[-1, WIDTH])]
    answers = [model_pb2.TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])]
    for version in VERSIONS:
        artifact = await client.upload(graph(WIDTH, 0.1 * version), model_pb2.ARTIFACT_KIND_ONNX)
        await client.registry.CreateModelVersion(
            registry_service_pb2.CreateModelVersionRequest(
                parent=f"{PARENT}/models/{model}",
                model_version=model_pb2.ModelVersion(
                    digest=artifact.digest,
                    schema_hash="tiny",
                    inputs=rows,
                    outputs=answers,
                    attachments=attachments,
                ),
            )
        )


def _untold() -> None:
    """Tell nobody: the conditions are looked at where they matter."""


@asynccontextmanager
async def rollout_mesh(folder: Path, port_base: int) -> AsyncIterator[RolloutMesh]:
    """Run a mesh for a block; nothing of it is left afterwards."""
    mesh_folder = MeshFolder(folder)
    with mesh_folder.held():
        mesh = RolloutMesh(mesh_folder, port_base)
        try:
            await mesh.start()
            yield mesh
        finally:
            await mesh.stop()
