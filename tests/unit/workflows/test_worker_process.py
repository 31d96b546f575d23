"""The worker as its own process on a real Temporal: lost at every state, nothing happens twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
import pytest
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc
from volary.gateway.v1 import (
    evidence_pb2,
    evidence_service_pb2_grpc,
    replica_pb2,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2_grpc,
)
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2_grpc
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import (
    ApprovalPolicy,
    Command,
    RolloutSpec,
    RolloutStatus,
    ShadowStage,
    Step,
)
from volary_workflows.starting import start_rollout

CALLS_A_LOOK = 200
LONG_S = 300.0  # nobody waits that long: it ends a test that would never end
DIGEST = "sha256:" + "0" * 64
ADA = Command("principals/ada", "go on")
STEPS = ["shadow", "canary", "50", "bake", "promote"]
SPEC = RolloutSpec(
    model="",
    candidate=2,
    shadow=ShadowStage(1.0, 0.5, 100),
    steps=[Step(1_000, 0.5, 100), Step(5_000, 0.5, 100)],
    bake_s=0.5,
    guards=[Guard()],
    poll_s=0.2,
    max_extensions=1_000,
    requested_by="principals/ada",
)
HELD = {
    "at-pending": "PENDING",
    "at-validating": "VALIDATING",
    "at-approval": "AWAITING_APPROVAL",
    "at-loading": "LOADING",
    "at-staging": "STAGING",
    "at-shadow": "SHADOW",
    "at-canary": "CANARY",
    "at-progressing": "PROGRESSING",
    "at-baking": "BAKING",
    "at-promoting": "BAKING",  # written, and the reply on its way
    "at-rolling-back": "ROLLING_BACK",
}


def spec_of(model: str) -> RolloutSpec:
    spec = replace(SPEC, model=model)
    if model == "at-pending":
        return replace(spec, start_at_s=time.time() + 3_600)
    if model == "at-approval":
        return replace(spec, approval=ApprovalPolicy("manual", ["principals/ada"]))
    return spec


def model_of(name: str) -> str:
    return name.split("/")[3]


@dataclass
class Mesh(
    traffic_service_pb2_grpc.TrafficServiceServicer,
    replica_service_pb2_grpc.ReplicaServiceServicer,
    evidence_service_pb2_grpc.EvidenceServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
    grpc_service_pb2_grpc.GRPCInferenceServiceServicer,
    monitor_service_pb2_grpc.MonitorServiceServicer,
):
    """Gateway, registry and a replica under steady traffic, which hold each model at its state."""

    address: str = ""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    traffic: dict[str, traffic_pb2.Traffic] = field(default_factory=dict)
    written: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    replies: dict = field(default_factory=dict)
    refused: list = field(default_factory=list)
    looks: dict = field(default_factory=lambda: defaultdict(int))
    stored: dict = field(default_factory=dict)
    unloaded: list = field(default_factory=list)

    async def hold(self, model: str, at: str) -> None:
        if model == at:
            await self.released.wait()

    def now(self, model: str) -> traffic_pb2.Traffic:
        return self.traffic.get(model, traffic_pb2.Traffic(generation=3, production_version=1))

    async def GetTraffic(self, request, context):
        return self.now(model_of(request.name))

    async def SetTraffic(self, request, context):
        model = model_of(request.name)
        if request.request_id not in self.replies:
            now = self.now(model)
            if request.expected_generation != now.generation:
                self.refused.append(request)
                await context.abort(grpc.StatusCode.ABORTED, "stale")
            self.written[model].append(request)
            self.traffic[model] = self.replies[request.request_id] = traffic_pb2.Traffic(
                generation=request.expected_generation + 1,
                production_version=request.production_version or now.production_version,
                rollout=request.rollout,
                step=request.step,
                cause=request.cause,
                in_effect=True,
            )
        if request.step == "promote":
            await self.hold(model, "at-promoting")
        return self.replies[request.request_id]

    async def GetEvidence(self, request, context):
        model = model_of(request.model)
        step = self.now(model).step
        if step == "bake":
            await self.hold(model, "at-baking")
        held = {"shadow": "at-shadow", "canary": "at-canary", "50": "at-progressing"}.get(step)
        generation = self.now(model).generation
        if model != held or self.released.is_set():
            self.looks[model, generation] += 1
        return evidence_pb2.Evidence(
            variants=[
                variant
                for change in self.written[model]
                for variant in self.variants(model, change)
            ],
            complete=True,
            generation=generation,
        )

    def variants(self, model, change):
        generation = change.expected_generation + 1
        calls = CALLS_A_LOOK * self.looks[model, generation]
        is_bad = model == "at-rolling-back" and change.step == "canary"
        if change.HasField("shadow"):
            yield served(generation, 2, calls, shadow=True)
        for weight in change.weights:
            code = 13 if is_bad and weight.version == 2 else 0
            yield served(generation, weight.version, calls * weight.weight // 10_000, code=code)

    async def LoadVersion(self, request, context):
        return replica_service_pb2.VersionReadiness()

    async def GetVersionReadiness(self, request, context):
        is_held = model_of(request.name) == "at-loading" and not self.released.is_set()
        ready = 0 if is_held else 1
        return replica_service_pb2.VersionReadiness(
            ready_replicas=ready, attached_replicas=1, calls_in_flight=0
        )

    async def UnloadVersion(self, request, context):
        await self.hold(model_of(request.name), "at-rolling-back")
        self.unloaded.append(model_of(request.name))
        return replica_service_pb2.VersionReadiness()

    async def ListReplicas(self, request, context):
        versions = [
            replica_pb2.LoadedVersion(
                project="default", model=model, version=2, state=replica_pb2.VERSION_STATE_READY
            )
            for model in HELD
        ]
        replica = replica_pb2.Replica(
            id="a", incarnation="a", address=self.address, attached=True, versions=versions
        )
        return replica_service_pb2.ListReplicasResponse(replicas=[replica])

    async def ModelReady(self, request, context):
        await self.hold(request.name, "at-staging")
        return v2.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request, context):
        return v2.ModelMetadataResponse(name=request.name)

    async def ModelInfer(self, request, context):
        if request.model_version != "2":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        if request.inputs:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such tensor")
        reply = v2.ModelInferResponse(model_version="2")
        reply.parameters["volary_digest"].string_param = DIGEST
        return reply

    async def CompareShadow(self, request, context):
        return monitor_pb2.ShadowComparison(pairs=100, agreeing=97)

    async def GetModelVersion(self, request, context):
        await self.hold(model_of(request.name), "at-validating")
        return model_pb2.ModelVersion(name=request.name, version=2, digest=DIGEST)

    async def DecideApproval(self, request, context):
        return model_pb2.ModelVersion()

    async def CreateEvaluation(self, request, context):
        return self.stored.setdefault(request.evaluation_id, request.evaluation)


def served(generation, version, calls, *, shadow=False, code=0):
    return evidence_pb2.VariantCounters(
        generation=generation,
        version=version,
        shadow=shadow,
        outcomes=[
            evidence_pb2.OutcomeCount(
                code=code, tier="model", count=calls, first_attempts=calls, error_event=code != 0
            )
        ],
        complete=True,
    )


@asynccontextmanager
async def serving(mesh):
    server = grpc.aio.server()
    traffic_service_pb2_grpc.add_TrafficServiceServicer_to_server(mesh, server)
    replica_service_pb2_grpc.add_ReplicaServiceServicer_to_server(mesh, server)
    evidence_service_pb2_grpc.add_EvidenceServiceServicer_to_server(mesh, server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(mesh, server)
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(mesh, server)
    monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server(mesh, server)
    mesh.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield mesh.address
    finally:
        await server.stop(None)


def environment_of(temporal_address, redis_url, mesh_address) -> dict[str, str]:
    """Return the settings of a worker whose peers are all one mesh."""
    return {
        "VOLARY_WORKFLOWS_TEMPORAL_ADDRESS": temporal_address,
        "VOLARY_WORKFLOWS_REDIS_URL": redis_url,
        "VOLARY_WORKFLOWS_GATEWAY_ADDRESS": mesh_address,
        "VOLARY_WORKFLOWS_REGISTRY_ADDRESS": mesh_address,
        "VOLARY_WORKFLOWS_MONITOR_ADDRESS": mesh_address,
        "VOLARY_WORKFLOWS_OTLP_ENDPOINT": "127.0.0.1:9",  # a dead collector stops nothing
        "VOLARY_WORKFLOWS_DRAIN_DELAY_S": "0",
    }


@asynccontextmanager
async def worker(environment):
    """Run the deployable itself; whatever happens it is gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "volary_workflows", env=os.environ | environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.timeout(4 * LONG_S)
@pytest.mark.parametrize("lost", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_worker_that_is_lost_at_any_state_is_not_missed(
    temporal, temporal_address, redis_url, lost
):
    """One rollout stands at each state when the worker is lost; a frozen one comes back later."""
    mesh = Mesh()
    async with serving(mesh) as address:
        environment = environment_of(temporal_address, redis_url, address)
        async with worker(environment) as first:
            handles = {model: await start_rollout(temporal, spec_of(model)) for model in HELD}
            async with asyncio.timeout(LONG_S):
                await asyncio.gather(
                    *(until_held(mesh, model, handle, first) for model, handle in handles.items())
                )
            first.send_signal(lost)
            mesh.released.set()
            async with worker(environment) as second:
                async with asyncio.timeout(LONG_S):
                    await updated(handles["at-pending"], "skip_step")
                    await updated(handles["at-approval"], "approve")
                    ends = {model: await handle.result() for model, handle in handles.items()}
                written = {model: list(changes) for model, changes in mesh.written.items()}
                if lost is signal.SIGSTOP:
                    first.send_signal(signal.SIGCONT)
                    first.terminate()
                    assert await asyncio.wait_for(first.wait(), LONG_S) == 0
                assert mesh.written == written  # what came back late wrote nothing
                second.terminate()
                assert await asyncio.wait_for(second.wait(), LONG_S) == 0
        assert first.returncode == (0 if lost is signal.SIGSTOP else -signal.SIGKILL)
    bad = ends.pop("at-rolling-back")
    assert (bad.state, bad.reason) == ("ROLLED_BACK", "CANDIDATE_WORSE")
    assert [change.step for change in mesh.written["at-rolling-back"]] == [
        "shadow",
        "canary",
        "rollback",
    ]
    assert mesh.unloaded.count("at-rolling-back") >= 1
    for model, status in ends.items():
        assert isinstance(status, RolloutStatus)
        assert (model, status.state) == (model, "PROMOTED")
        assert [change.step for change in mesh.written[model]] == STEPS
        assert mesh.traffic[model].production_version == 2
    listed = [each async for each in temporal.list_workflows("VolaryModel = 'at-canary'")]
    assert {each.id for each in listed} == {"rollout/default/at-canary"}


async def updated(handle, name) -> RolloutStatus:
    return await handle.execute_update(name, ADA, result_type=RolloutStatus)


async def until_held(mesh, model, handle, process: Process):
    while True:
        assert process.returncode is None, "the worker ended by itself"
        status = await handle.query("status", result_type=RolloutStatus)
        is_written = model != "at-promoting" or mesh.now(model).step == "promote"
        if status.state == HELD[model] and is_written:
            return
        await asyncio.sleep(0.1)
