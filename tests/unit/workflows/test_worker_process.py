"""The worker as its own process on a real Temporal: killed in mid-canary, nothing happens twice."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from volary.gateway.v1 import (
    evidence_pb2,
    evidence_service_pb2_grpc,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2_grpc,
)
from volary.registry.v1 import model_pb2, registry_service_pb2_grpc
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.messages import RolloutSpec, RolloutStatus, ShadowStage, Step
from volary_workflows.starting import start_rollout

CALLS_A_LOOK = 200
SPEC = RolloutSpec(
    model="survivor",
    candidate=2,
    shadow=ShadowStage(1.0, 0.5, 100),
    steps=[Step(1_000, 2.0, 100), Step(5_000, 1.0, 100)],
    bake_s=0.5,
    guards=[Guard()],
    poll_s=0.1,
)


@dataclass
class Mesh(
    traffic_service_pb2_grpc.TrafficServiceServicer,
    replica_service_pb2_grpc.ReplicaServiceServicer,
    evidence_service_pb2_grpc.EvidenceServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
):
    """A gateway under steady traffic without errors, and a registry that keeps what it is told."""

    traffic: traffic_pb2.Traffic = field(
        default_factory=lambda: traffic_pb2.Traffic(generation=3, production_version=1)
    )
    written: list = field(default_factory=list)
    replies: dict = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)
    stored: dict = field(default_factory=dict)

    async def GetTraffic(self, request, context):
        return self.traffic

    async def SetTraffic(self, request, context):
        if request.request_id not in self.replies:
            if request.expected_generation != self.traffic.generation:
                await context.abort(grpc.StatusCode.ABORTED, "stale")
            self.written.append(request)
            self.traffic = traffic_pb2.Traffic(
                generation=request.expected_generation + 1,
                production_version=request.production_version or self.traffic.production_version,
                rollout=request.rollout,
                step=request.step,
                cause=request.cause,
                in_effect=True,
            )
            self.replies[request.request_id] = self.traffic
        return self.replies[request.request_id]

    async def GetEvidence(self, request, context):
        now = self.traffic.generation
        self.looks[now] = self.looks.get(now, 0) + 1
        variants = []
        for change in self.written:
            generation = change.expected_generation + 1
            calls = CALLS_A_LOOK * self.looks.get(generation, 0)
            if change.HasField("shadow"):
                variants.append(served(generation, 2, calls, shadow=True))
            variants += [
                served(generation, w.version, calls * w.weight // 10_000) for w in change.weights
            ]
        return evidence_pb2.Evidence(variants=variants, complete=True, generation=now)

    async def LoadVersion(self, request, context):
        return replica_service_pb2.VersionReadiness()

    async def GetVersionReadiness(self, request, context):
        return replica_service_pb2.VersionReadiness(ready_replicas=2, attached_replicas=2)

    async def GetModelVersion(self, request, context):
        return model_pb2.ModelVersion(version=2, digest="sha256:" + "0" * 64)

    async def DecideApproval(self, request, context):
        return model_pb2.ModelVersion()

    async def CreateEvaluation(self, request, context):
        return self.stored.setdefault(request.evaluation_id, request.evaluation)


def served(generation, version, calls, *, shadow=False):
    return evidence_pb2.VariantCounters(
        generation=generation,
        version=version,
        shadow=shadow,
        outcomes=[
            evidence_pb2.OutcomeCount(code=0, tier="model", count=calls, first_attempts=calls)
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
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


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


async def test_a_worker_that_is_killed_in_mid_canary_is_not_missed(
    temporal, temporal_address, redis_url
):
    mesh = Mesh()
    async with serving(mesh) as address:
        environment = {
            "VOLARY_WORKFLOWS_TEMPORAL_ADDRESS": temporal_address,
            "VOLARY_WORKFLOWS_REDIS_URL": redis_url,
            "VOLARY_WORKFLOWS_GATEWAY_ADDRESS": address,
            "VOLARY_WORKFLOWS_REGISTRY_ADDRESS": address,
            "VOLARY_WORKFLOWS_OTLP_ENDPOINT": "127.0.0.1:9",  # a dead collector stops nothing
            "VOLARY_WORKFLOWS_DRAIN_DELAY_S": "0",
        }
        async with worker(environment) as first:
            handle = await start_rollout(temporal, SPEC)
            async with asyncio.timeout(40):
                await until_step(mesh, "canary", first)
        assert first.returncode == -9
        async with worker(environment) as second:
            async with asyncio.timeout(60):
                status = await handle.result()
            second.terminate()
            assert await asyncio.wait_for(second.wait(), 20) == 0
    assert isinstance(status, RolloutStatus)
    assert status.state == "PROMOTED"
    assert [change.step for change in mesh.written] == ["shadow", "canary", "50", "bake", "promote"]
    assert mesh.traffic.production_version == 2


async def until_step(mesh, step, process: Process):
    while mesh.traffic.step != step:
        assert process.returncode is None, "the worker ended by itself"
        await asyncio.sleep(0.05)
