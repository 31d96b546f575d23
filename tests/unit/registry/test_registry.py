"""The registry on a real Postgres: numbers without gaps, what is in production, the audit chain."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import sqlalchemy as sa
from onnx import TensorProto, helper
from volary.events.v1.event_pb2 import Event, TrafficEvent, VersionWeight
from volary.registry.v1 import registry_service_pb2 as pb
from volary.registry.v1.model_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_PENDING,
    ARTIFACT_KIND_ONNX,
    Artifact,
    ArtifactKind,
    Evaluation,
    Model,
    ModelVersion,
    Pipeline,
    PipelineStep,
    Wire,
)
from volary_kit.artifacts import ArtifactStore
from volary_kit.database import Database
from volary_kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from volary_kit.testing import ManualClock, called
from volary_kit.timestamps import from_us
from volary_registry.handlers.artifacts import ArtifactHandler
from volary_registry.handlers.registry import RegistryHandler
from volary_registry.projection import Projection
from volary_registry.settings import RegistrySettings

MODEL = "projects/default/models/delay"
NO_CONTEXT = cast("Any", None)


class Rig:
    """The registry's handlers on a fresh schema, with a clock to turn."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.clock = ManualClock()
        self.database = database
        files = self.files = ArtifactStore(folder)
        self.registry = RegistryHandler(database, files, self.clock)
        self.artifacts = ArtifactHandler(database, files, self.clock, RegistrySettings())
        self.projection = Projection(database)

    async def model(self, name: str = "delay") -> Model:
        model = Model(owner="team", on_call="pager")
        request = pb.CreateModelRequest(parent="projects/default", model_id=name, model=model)
        return await self.registry.CreateModel(request, NO_CONTEXT)

    async def upload(
        self, data: bytes, kind: ArtifactKind.ValueType = ARTIFACT_KIND_ONNX
    ) -> Artifact:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return await self.send(
            pb.ArtifactHeader(digest=digest, kind=kind, size_bytes=len(data)), data
        )

    async def send(self, header: pb.ArtifactHeader, data: bytes) -> Artifact:
        async def parts() -> AsyncIterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(header=header)
            for start in range(0, len(data), 100):
                yield pb.UploadArtifactRequest(chunk=data[start : start + 100])

        return await self.artifacts.UploadArtifact(parts(), NO_CONTEXT)

    async def version(self, digest: str, **metrics: float) -> ModelVersion:
        version = ModelVersion(digest=digest, metrics=metrics, schema_hash="s")
        request = pb.CreateModelVersionRequest(parent=MODEL, model_version=version)
        return await self.registry.CreateModelVersion(request, NO_CONTEXT)

    async def serves(self, generation: int, cause: str = "set", **weights: int) -> None:
        event = Event(
            id=f"e{generation}",
            project="default",
            traffic=TrafficEvent(
                model="delay",
                generation=generation,
                weights=[
                    VersionWeight(version=int(v.removeprefix("v")), weight=w)
                    for v, w in weights.items()
                ],
                cause=cause,
                principal="principals/operator",
                effective_at=from_us(self.clock.now_us()),
            ),
        )
        await self.projection.handle([event])


@pytest.fixture
async def rig(make_database: Any, tmp_path: Path) -> Rig:
    return Rig(await make_database("registry"), tmp_path)


@pytest.fixture(autouse=True)
def call() -> Iterator[None]:
    with called():
        yield


def graph(*, domain: str = "", external: bool = False, scale: float = 1.0) -> bytes:
    """A small ONNX model."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [scale])
    if external:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")
    node = helper.make_node("Mul", ["x", "w"], ["y"], domain=domain)
    body = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model: onnx.ModelProto = helper.make_model(body, opset_imports=opsets)
    return model.SerializeToString()


async def test_numbers_have_no_gaps_when_twenty_create_at_once_and_some_fail(rig: Rig) -> None:
    await rig.model()
    artifact = await rig.upload(graph())
    absent = "sha256:" + "0" * 64
    wanted = [rig.version(artifact.digest if i % 3 else absent) for i in range(20)]

    done = await asyncio.gather(*wanted, return_exceptions=True)

    made = [each for each in done if isinstance(each, ModelVersion)]
    refused = [each for each in done if isinstance(each, FailedPrecondition)]
    assert len(made) + len(refused) == 20
    assert sorted(each.version for each in made) == list(range(1, len(made) + 1))
    assert {error.reason for error in refused} == {"ARTIFACT_NOT_FOUND"}
    listed = await rig.registry.ListModelVersions(
        pb.ListModelVersionsRequest(parent=MODEL, page_size=5), NO_CONTEXT
    )
    assert [v.version for v in listed.model_versions] == [13, 12, 11, 10, 9]
    rest = await rig.registry.ListModelVersions(
        pb.ListModelVersionsRequest(parent=MODEL, page_token=listed.next_page_token), NO_CONTEXT
    )
    assert [v.version for v in rest.model_versions] == list(range(8, 0, -1))
    assert rest.next_page_token == ""


async def test_a_graph_with_outside_data_or_foreign_operators_is_refused(rig: Rig) -> None:
    for bad in (graph(external=True), graph(domain="com.example.evil"), b"\x00not onnx"):
        with pytest.raises(InvalidArgument) as refused:
            await rig.upload(bad)
        assert refused.value.reason == "ARTIFACT_REFUSED"
        digest = f"sha256:{hashlib.sha256(bad).hexdigest()}"
        with pytest.raises(NotFound):
            await rig.artifacts.GetArtifact(pb.GetArtifactRequest(digest=digest), NO_CONTEXT)


async def test_bytes_that_are_not_what_the_digest_says_are_refused(rig: Rig) -> None:
    data = graph()
    header = pb.ArtifactHeader(
        digest="sha256:" + "a" * 64, kind=ARTIFACT_KIND_ONNX, size_bytes=len(data)
    )
    with pytest.raises(InvalidArgument, match="DIGEST_MISMATCH"):
        await rig.send(header, data)


async def test_an_artifact_comes_back_as_it_went(rig: Rig) -> None:
    data = graph(scale=2.5)
    artifact = await rig.upload(data)
    assert await rig.upload(data) == artifact
    request = pb.DownloadArtifactRequest(digest=artifact.digest)
    replies = rig.artifacts.DownloadArtifact(request, NO_CONTEXT)
    assert b"".join([reply.chunk async for reply in replies]) == data


async def test_production_says_what_serves_since_when_against_the_previous(rig: Rig) -> None:
    await rig.model()
    digest = (await rig.upload(graph())).digest
    first, second = [await rig.version(digest, auc=auc) for auc in (0.7, 0.75)]
    with pytest.raises(NotFound, match="NOTHING_IN_PRODUCTION"):
        await rig.registry.GetProduction(pb.GetProductionRequest(model=MODEL), NO_CONTEXT)
    gate = Evaluation(kind="gate", candidate_version=2, verdict="PASS")
    await rig.registry.CreateEvaluation(
        pb.CreateEvaluationRequest(parent=MODEL, evaluation_id="gate-2", evaluation=gate),
        NO_CONTEXT,
    )

    await rig.serves(1, v1=10_000)
    await rig.serves(2, "step", v2=1_000, v1=9_000)
    rig.clock.advance(60)
    await rig.serves(3, "promote", v2=10_000)
    since = rig.clock.now_us()
    rig.clock.advance(60)
    await rig.serves(4, "step", v3=1_000, v2=9_000)
    await rig.serves(3, "promote", v2=10_000)  # delivered again

    found = await rig.registry.GetProduction(pb.GetProductionRequest(model=MODEL), NO_CONTEXT)
    assert (found.version.version, found.previous.version) == (second.version, first.version)
    assert found.since == from_us(since)
    assert found.deployment.cause == "promote"
    assert found.latest_deployment.generation == 4
    assert found.metric_deltas["auc"] == pytest.approx(0.05)
    assert found.gate.verdict == "PASS"
    history = await rig.registry.ListDeployments(
        pb.ListDeploymentsRequest(parent=MODEL), NO_CONTEXT
    )
    assert [d.generation for d in history.deployments] == [4, 3, 2, 1]
    assert [d.production_version for d in history.deployments] == [2, 2, 1, 1]


async def test_decisions_keep_who_and_when(rig: Rig) -> None:
    await rig.model()
    version = await rig.version((await rig.upload(graph())).digest)
    assert version.approval.state == APPROVAL_STATE_PENDING
    decided = await rig.registry.DecideApproval(
        pb.DecideApprovalRequest(
            name=version.name,
            state=APPROVAL_STATE_APPROVED,
            comment="fine",
            principal="policy/somebody-else",
        ),
        NO_CONTEXT,
    )
    assert decided.approval.principal == "principals/tester"  # only a service speaks for a policy
    assert decided.approval.decide_time == from_us(rig.clock.now_us())
    assert decided.etag != version.etag


async def test_a_stale_etag_and_a_doubled_name_are_refused(rig: Rig) -> None:
    model = await rig.model()
    with pytest.raises(AlreadyExists):
        await rig.model()
    model.description = "new"
    changed = await rig.registry.UpdateModel(pb.UpdateModelRequest(model=model), NO_CONTEXT)
    assert changed.description == "new"
    with pytest.raises(Aborted, match="ETAG_MISMATCH"):
        await rig.registry.UpdateModel(pb.UpdateModelRequest(model=model), NO_CONTEXT)


async def test_another_project_sees_nothing(rig: Rig) -> None:
    await rig.model()
    with called("elsewhere"), pytest.raises(NotFound):
        await rig.registry.GetModel(pb.GetModelRequest(name=MODEL), NO_CONTEXT)


async def test_an_altered_audit_row_is_named(rig: Rig) -> None:
    for name in ("a", "b", "c"):
        await rig.model(name)
    parent = pb.VerifyAuditRequest(parent="projects/default")
    whole = await rig.registry.VerifyAudit(parent, NO_CONTEXT)
    assert (whole.checked, whole.HasField("first_bad")) == (3, False)
    async with rig.database.transaction() as transaction:
        await transaction.execute(
            sa.text("UPDATE audit SET principal = 'principals/nobody' WHERE sequence = 2")
        )
    altered = await rig.registry.VerifyAudit(parent, NO_CONTEXT)
    assert (altered.checked, altered.first_bad.sequence) == (1, 2)
    assert altered.first_bad.resource == "projects/default/models/b"


def pipeline(first: str, second: str) -> Pipeline:
    return Pipeline(
        steps=[
            PipelineStep(name="one", digest=first, inputs=[Wire(tensor="x", source="features")]),
            PipelineStep(
                name="two", digest=second, inputs=[Wire(tensor="x", step="one", source="y")]
            ),
        ],
        outputs=[Wire(tensor="score", step="two", source="y")],
    )


async def test_a_version_may_be_composed_of_graphs_that_are_stored(rig: Rig) -> None:
    await rig.model()
    first, second = [(await rig.upload(runnable(scale))).digest for scale in (2.0, 3.0)]
    declared = ModelVersion(pipeline=pipeline(first, second), schema_hash="s")
    request = pb.CreateModelVersionRequest(parent=MODEL, model_version=declared)
    made = await rig.registry.CreateModelVersion(request, NO_CONTEXT)
    assert made.pipeline == declared.pipeline
    assert [(spec.name, spec.datatype) for spec in made.outputs] == [("score", "FP32")]
    composed = rig.files.read(made.digest)
    [score] = run(composed, features=np.array([1.0, 5.0], np.float32))
    assert score.tolist() == [6.0, 30.0]
    stored = await rig.artifacts.GetArtifact(pb.GetArtifactRequest(digest=made.digest), NO_CONTEXT)
    assert (stored.kind, stored.size_bytes) == (ARTIFACT_KIND_ONNX, len(composed))
    # the same once more is another version of the same digest; another digest is refused
    request.model_version.digest = made.digest
    again = await rig.registry.CreateModelVersion(request, NO_CONTEXT)
    assert (again.version, again.digest) == (2, made.digest)
    request.model_version.digest = first
    with pytest.raises(FailedPrecondition) as caught:
        await rig.registry.CreateModelVersion(request, NO_CONTEXT)
    assert caught.value.reason == "PIPELINE_DIGEST_MISMATCH"


async def test_a_pipeline_of_what_is_not_stored_is_refused_and_takes_no_number(rig: Rig) -> None:
    await rig.model()
    first = (await rig.upload(graph())).digest
    declared = ModelVersion(pipeline=pipeline(first, "sha256:" + "0" * 64))
    request = pb.CreateModelVersionRequest(parent=MODEL, model_version=declared)
    with pytest.raises(FailedPrecondition) as caught:
        await rig.registry.CreateModelVersion(request, NO_CONTEXT)
    assert list(caught.value.violations) == ["model_version.pipeline.steps[1].digest"]
    declared.pipeline.CopyFrom(pipeline(first, first))
    declared.pipeline.steps[0].inputs[0].step = "two"
    declared.pipeline.steps[0].inputs[0].source = "y"
    with pytest.raises(InvalidArgument) as refused:
        await rig.registry.CreateModelVersion(
            pb.CreateModelVersionRequest(parent=MODEL, model_version=declared), NO_CONTEXT
        )
    assert refused.value.reason == "PIPELINE_INVALID"
    assert (await rig.version(first)).version == 1


def runnable(scale: float) -> bytes:
    """The graph in a format that the runtime knows."""
    made = onnx.ModelProto.FromString(graph(scale=scale))
    made.ir_version = 9
    return made.SerializeToString()


def run(data: bytes, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, feeds)]
