"""Staging asks each replica by itself, and says what was wrong with which answer."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from volary.gateway.v1 import replica_pb2, replica_service_pb2, replica_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.outgoing.dress import MeshDress
from volary_workflows.rollout.staging import StagingActivities
from volary_workflows.rollout.tasks import StagingReport, Subject

DIGEST = "sha256:" + "1" * 64
GOLDEN_DIGEST = "sha256:" + "2" * 64
SUBJECT = Subject("default", "delays", 2, DIGEST)
GOLDEN = {"inputs": {"features": [[1.0, 2.0]]}, "outputs": {"probability": [[3.0]]}}


@dataclass
class Replica(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """A replica whose model adds its two features up, unless it is told to go wrong."""

    error: float = 0.0
    digest: str = DIGEST
    outputs: str = "probability"
    is_lax: bool = False
    metadata: list = field(default_factory=list)

    async def ModelReady(self, request, context):
        return v2.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request, context):
        tensor = v2.ModelMetadataResponse.TensorMetadata
        return v2.ModelMetadataResponse(
            name=request.name,
            inputs=[tensor(name="features", datatype="FP32", shape=[-1, 2])],
            outputs=[tensor(name=self.outputs, datatype="FP32", shape=[-1, 1])],
        )

    async def ModelInfer(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        if not self.is_lax and request.model_version != "2":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        if request.inputs and request.inputs[0].name != "features":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such tensor")
        reply = v2.ModelInferResponse(model_name="delays", model_version=request.model_version)
        reply.parameters["volary_digest"].string_param = self.digest
        for raw, given in zip(request.raw_input_contents, request.inputs, strict=True):
            rows = np.frombuffer(raw, "<f4").reshape(tuple(given.shape))
            sums = rows.sum(axis=1, keepdims=True) + np.float32(self.error)
            reply.outputs.add(name="probability", datatype="FP32", shape=sums.shape)
            reply.raw_output_contents.append(sums.astype("<f4").tobytes())
        return reply


@dataclass
class Mesh(
    replica_service_pb2_grpc.ReplicaServiceServicer,
    registry_service_pb2_grpc.RegistryServiceServicer,
    registry_service_pb2_grpc.ArtifactServiceServicer,
):
    """Gateway and registry of one version, with golden rows when there are any."""

    golden: object = None
    replicas: list[replica_pb2.Replica] = field(default_factory=list)
    later: list[replica_pb2.Replica] | None = None

    async def ListReplicas(self, request, context):
        listed, self.replicas = self.replicas, self.later or self.replicas
        return replica_service_pb2.ListReplicasResponse(replicas=listed)

    async def GetModelVersion(self, request, context):
        spec = model_pb2.TensorSpec
        return model_pb2.ModelVersion(
            name=request.name,
            version=2,
            digest=DIGEST,
            inputs=[spec(name="features", datatype="FP32", shape=[-1, 2])],
            outputs=[spec(name="probability", datatype="FP32", shape=[-1, 1])],
            attachments={} if self.golden is None else {"golden_rows": GOLDEN_DIGEST},
        )

    async def DownloadArtifact(self, request, context):
        assert request.digest == GOLDEN_DIGEST
        yield registry_service_pb2.DownloadArtifactResponse(chunk=json.dumps(self.golden).encode())


def listed(name: str, address: str, *, incarnation: str = "", attached: bool = True):
    held = replica_pb2.LoadedVersion(
        project="default", model="delays", version=2, state=replica_pb2.VERSION_STATE_READY
    )
    return replica_pb2.Replica(
        id=name,
        address=address,
        attached=attached,
        incarnation=incarnation or name,
        versions=[held],
    )


@asynccontextmanager
async def served(replica: Replica):
    server = grpc.aio.server()
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(replica, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def staged(mesh: Mesh, *replicas: Replica) -> StagingReport:
    """Serve everything, and run the activity."""
    server = grpc.aio.server()
    replica_service_pb2_grpc.add_ReplicaServiceServicer_to_server(mesh, server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(mesh, server)
    registry_service_pb2_grpc.add_ArtifactServiceServicer_to_server(mesh, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    channels = Channels("workflows", {"gateway": address, "registry": address}, MeshDress())
    async with served(replicas[0]) as first, served(replicas[-1]) as last:
        addresses = [first, last][: len(replicas)]
        mesh.replicas = mesh.replicas or [
            listed("ab"[i], place) for i, place in enumerate(addresses)
        ]
        try:
            return await ActivityEnvironment().run(
                StagingActivities(channels).stage_version, SUBJECT
            )
        finally:
            await channels.close()
            await server.stop(None)


async def test_every_replica_answers_and_nothing_counts_it():
    good = [Replica(), Replica()]
    report = await staged(Mesh(GOLDEN), *good)
    assert report == StagingReport(10, [])
    for replica in good:
        assert {each["volary-shadow"] for each in replica.metadata} == {"true"}


async def test_without_golden_rows_it_must_still_answer_with_finite_numbers():
    assert (await staged(Mesh(), Replica())).problems == []
    report = await staged(Mesh(), Replica(error=float("nan")))
    assert report.problems == ["a: answers: output probability is not finite"]


@pytest.mark.parametrize(
    ("replica", "problem"),
    [
        (Replica(error=0.01), "b: golden rows: output probability comes out differently"),
        (Replica(digest=GOLDEN_DIGEST), f"b: digest: {GOLDEN_DIGEST} answered"),
        (Replica(is_lax=True), "b: refuses an unknown version: it answered"),
    ],
)
async def test_one_bad_replica_is_enough_and_is_named(replica, problem):
    assert (await staged(Mesh(GOLDEN), Replica(), replica)).problems == [problem]


async def test_another_signature_than_the_registered_one_is_refused():
    report = await staged(Mesh(GOLDEN), Replica(outputs="score"))
    assert len(report.problems) == 1
    assert report.problems[0].startswith("a: outputs: ")


@pytest.mark.parametrize("golden", [[], {"inputs": {}}, {"inputs": {"x": [1]}, "outputs": {}}])
async def test_golden_rows_that_cannot_be_read_are_a_problem_not_a_crash(golden):
    report = await staged(Mesh(golden), Replica())
    assert len(report.problems) == 1
    assert "golden rows" in report.problems[0]


async def test_while_no_replica_holds_it_ready_it_is_tried_again():
    gone = [listed("a", "127.0.0.1:1", attached=False)]
    with pytest.raises(ApplicationError) as refused:
        await staged(Mesh(replicas=gone), Replica())
    assert (refused.value.type, refused.value.non_retryable) == ("VERSION_NOT_READY", False)


async def test_what_a_replica_said_that_began_anew_meanwhile_is_void():
    async with served(Replica(error=1.0)) as address:
        mesh = Mesh(
            GOLDEN,
            [listed("a", address, incarnation="one")],
            [listed("a", address, incarnation="two")],
        )
        with pytest.raises(ApplicationError) as refused:
            await staged(mesh, Replica())
    assert refused.value.type == "VERSION_NOT_READY"
