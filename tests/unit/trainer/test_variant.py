"""From a version that is registered to a variant that is: the operation, end to end.

Postgres, Temporal, the process that builds, and the loader of inference that would serve it are
real; features and registry are memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.duration_pb2 import Duration
from onnx import TensorProto, helper, numpy_helper
from temporalio.client import Client
from volary.registry.v1.model_pb2 import (
    ARTIFACT_KIND_ONNX,
    Lineage,
    ModelVersion,
    Pipeline,
    PipelineStep,
)
from volary.trainer.v1.run_pb2 import Run
from volary.trainer.v1.trainer_service_pb2 import BuildVariantRequest, BuildVariantResponse
from volary_inference.domain.batching import BatchPolicy
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package
from volary_kit.clock import SystemClock
from volary_kit.database import Database
from volary_kit.documents import canonical
from volary_kit.operations import Operations
from volary_kit.operations.handlers import OperationsHandler
from volary_kit.statuses import error_of
from volary_kit.testing import ManualClock, called
from volary_kit.timestamps import from_us
from volary_longrunning.operations_pb2 import Operation, WaitOperationRequest
from volary_trainer import store
from volary_trainer.building import Builder
from volary_trainer.handlers.trainer import TrainerHandler
from volary_trainer.settings import TrainerSettings

from .rows import ROWS, write_rows

MODEL = "projects/default/models/m"
VERSION = f"{MODEL}/versions/1"
GOLDEN_ROWS = np.array([[1.5, 5.0], [-1.5, 5.0], [0.0, 100.0], [0.5, -90.0]], np.float32)
ENDED_S = 120
MakeDatabase = Callable[[str], Awaitable[Database]]


def network() -> bytes:
    """A trained network in small: scaling, a layer, a score."""
    weights = {
        "mean": np.array([0, 5], np.float32),
        "scale": np.array([1, 100], np.float32),
        "w": np.array([[4.0], [0.0]], np.float32),
        "b": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "w", "b"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probability"]),
    ]

    def value(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])

    graph = helper.make_graph(
        nodes,
        "network",
        [value("features", 2)],
        [value("probability", 1)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def scored(graph: bytes, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"features": rows})[0])


@dataclass
class MemoryRegistry:
    """Versions and artifacts, as the trainer asks for them."""

    versions: dict[str, ModelVersion] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)

    async def get(self, name: str) -> ModelVersion:
        return self.versions[name]

    async def upload(self, data: bytes, kind: int) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.artifacts[digest] = data
        return digest

    async def download(self, digest: str) -> bytes:
        return self.artifacts[digest]

    async def create(self, model: str, version: ModelVersion, request_id: str) -> ModelVersion:
        version.version = len(self.versions) + 1
        version.name = f"{model}/versions/{version.version}"
        self.versions[version.name] = version
        return version


class OneSet:
    async def save(self, name: str, path: Path) -> None:
        write_rows(path.parent)


class Desk:
    """The trainer's operation with everything behind it."""

    def __init__(self, database: Database, client: Client, folder: Path) -> None:
        async def connect() -> Client:
            return client

        clock = ManualClock()
        self.database, self.registry = database, MemoryRegistry()
        self.operations = Operations(f"trainer{uuid.uuid4().hex}", database, connect, clock)
        settings = TrainerSettings(data_dir=folder)
        sets: Any = OneSet()
        versions: Any = self.registry
        builder = Builder(settings, database, sets, versions)
        self.operations.register("BuildVariant", builder.build)
        self.handler = TrainerHandler(database, self.operations, clock)
        self.waiting = OperationsHandler(self.operations)

    async def add_version(self, document: dict[str, Any]) -> ModelVersion:
        """Register what a run of the document would have."""
        graph = network()
        golden = {
            "inputs": {"features": GOLDEN_ROWS.tolist()},
            "outputs": {"probability": scored(graph, GOLDEN_ROWS).tolist()},
            "tolerance": 1e-4,
        }
        digest = await self.registry.upload(graph, ARTIFACT_KIND_ONNX)
        kept = await self.registry.upload(json.dumps(golden).encode(), ARTIFACT_KIND_ONNX)
        run = Run(name="projects/default/runs/r", training="projects/default/trainings/t")
        async with self.database.transaction() as transaction:
            await store.put_run(transaction, "default", "r", run)
            await store.put_training(
                transaction,
                project="default",
                training="t",
                document=canonical(document),
                document_hash="h",
                owner="o",
                on_call="c",
                create_us=0,
            )
        return await self.registry.create(
            MODEL,
            ModelVersion(
                digest=digest,
                kind=ARTIFACT_KIND_ONNX,
                feature_set="set@1",
                schema_hash="hash",
                threshold=0.5,
                metrics={"auc": 0.1},
                labels={"own": "label"},
                attachments={"golden_rows": kept},
                lineage=Lineage(
                    run=run.name,
                    training_set="projects/default/trainingSets/s",
                    train_start_time=from_us(0),
                    train_end_time=from_us(ROWS * 1_000),
                    weights_hash="weights",
                ),
            ),
            "",
        )

    async def build(self, **request: Any) -> Operation:
        asked = BuildVariantRequest(model_version=VERSION, request_id=str(uuid.uuid4()), **request)
        context: Any = None
        with called(project="default"):
            started = await self.handler.BuildVariant(asked, context)
        for _ in range(ENDED_S // 10):
            wait = WaitOperationRequest(name=started.name, timeout=Duration(seconds=10))
            with called(project="default", timeout_s=30):
                started = await self.waiting.WaitOperation(wait, context)
            if started.done:
                return started
        raise AssertionError(f"{started.name} has not ended in {ENDED_S} s")

    async def refusal(self, **request: Any) -> str:
        done = await self.build(**request)
        assert done.HasField("error")
        return error_of(done.error).reason


def declared() -> dict[str, Any]:
    spine = {
        "source": "s",
        "subject_column": "subject",
        "time_column": "event_time",
        "entity_columns": {},
        "label_column": "label",
        "label_threshold": 0.5,
    }
    spec = {
        "model": "m",
        "feature_set": "set",
        "sources": ["s"],
        "spine": spine,
        "window": {"start": "2020-01-01T00:00:00Z", "holdout": "1d"},
        "network": {"hidden": [8]},
        "optimiser": {"learning_rate": 0.1, "epochs": 1},
        "seed": 1,
        "evaluation": {"validation_share": 0.2},
        "gate": {"metric": "log_loss", "margin": 0.1, "alpha": 0.1},
        "variants": [{"precision": "fp16", "tolerance": 0.02, "metric": "brier", "margin": 0.01}],
        "rollout": {},
    }
    return {"kind": "Training", "name": "t", "owner": "o", "on_call": "c", "spec": spec}


@pytest.fixture
async def desk(
    make_database: MakeDatabase, temporal: Client, tmp_path: Path
) -> AsyncIterator[Desk]:
    desk = Desk(await make_database("trainer"), temporal, tmp_path)
    running = asyncio.create_task(desk.operations.run())
    await desk.add_version(declared())
    yield desk
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_registered_version_becomes_a_registered_variant_that_can_be_served(
    desk: Desk,
) -> None:
    done = await desk.build(precision="int8", tolerance=0.1, margin=0.02)
    reply = BuildVariantResponse()
    assert done.response.Unpack(reply), done
    assert reply.model_version == f"{MODEL}/versions/2"
    first, made = (desk.registry.versions[f"{MODEL}/versions/{n}"] for n in (1, 2))
    found = reply.variant
    assert (made.precision, made.digest) == ("int8", found.digest)
    assert made.digest != first.digest
    assert 0 < found.max_error <= found.tolerance
    assert found.loss - found.reference_loss <= found.margin
    assert found.speed_up > 0
    assert (made.lineage, made.schema_hash) == (first.lineage, first.schema_hash)
    assert not made.labels
    assert 0.95 < made.metrics["auc"] <= 1  # its own, on the validation rows
    assert sum(made.score_distribution.counts) == ROWS * 0.2

    graph = desk.registry.artifacts[made.digest]
    operators = {node.op_type for node in onnx.load_from_string(graph).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    golden = json.loads(desk.registry.artifacts[made.attachments["golden_rows"]])
    assert golden["tolerance"] == pytest.approx(0.1001)
    clock = SystemClock()
    loader = Loader(BatchPolicy(max_rows=4), clock)
    package = Package(Description(made.digest, precision=made.precision), graph, golden=golden)
    loader.warm(loader.open(package), package)  # raises where the golden rows do not come out


async def test_a_variant_takes_the_limits_that_its_training_declares(desk: Desk) -> None:
    done = await desk.build(precision="fp16")
    reply = BuildVariantResponse()
    assert done.response.Unpack(reply), done
    assert (reply.variant.tolerance, reply.variant.metric) == (0.02, "brier")
    assert await desk.refusal(precision="int8") == "VARIANT_UNDECLARED"


async def test_what_does_not_pass_or_cannot_be_judged_is_not_registered(desk: Desk) -> None:
    assert await desk.refusal(precision="int8", tolerance=1e-9, margin=1) == "VARIANT_REFUSED"
    version = desk.registry.versions[VERSION]
    version.precision = "fp16"
    assert await desk.refusal(precision="int8", tolerance=0.1) == "NOT_AS_TRAINED"
    version.precision = ""
    version.pipeline.CopyFrom(Pipeline(steps=[PipelineStep(name="a", digest=version.digest)]))
    assert await desk.refusal(precision="int8", tolerance=0.1) == "NOT_AS_TRAINED"
    version.ClearField("pipeline")
    version.lineage.ClearField("training_set")
    assert await desk.refusal(precision="int8", tolerance=0.1) == "NO_TRAINING_SET"
    assert len(desk.registry.versions) == 1
