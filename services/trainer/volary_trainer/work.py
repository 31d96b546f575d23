"""The long work: train and register, compare versions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volary.features.v1.feature_pb2 import TrainingSet
from volary.registry.v1.model_pb2 import (
    ARTIFACT_KIND_DOCUMENT,
    ARTIFACT_KIND_ONNX,
    ARTIFACT_KIND_SAFETENSORS,
    Lineage,
    ModelVersion,
    ScoreDistribution,
    TensorSpec,
    Variant,
)
from volary.trainer.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_FAILED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    Run,
)
from volary.trainer.v1.trainer_service_pb2 import (
    RunMetadata,
    StartRunRequest,
    VerifyRunRequest,
    VerifyRunResponse,
)
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.documents import check_data
from volary_kit.errors import Cancelled, FailedPrecondition, VolaryError
from volary_kit.operations import OperationContext
from volary_kit.serving import Serving
from volary_kit.timestamps import from_us, to_us

from volary_trainer import process, store
from volary_trainer.building import require_passed
from volary_trainer.domain import document, identity
from volary_trainer.domain.document import AS_TRAINED, Training
from volary_trainer.peers import TrainingSets, Versions
from volary_trainer.settings import TrainerSettings
from volary_trainer.tracking import Tracker

CODE = Path(__file__).parent


@dataclass(frozen=True)
class Trainer:
    """Runs declared trainings and registers what comes out."""

    settings: TrainerSettings
    database: Database
    clock: Clock
    tracker: Tracker
    sets: TrainingSets
    versions: Versions

    async def start_run(self, context: OperationContext, request: StartRunRequest) -> Run:
        """Train, export, check, register; the run's row says how far it is and how it ended."""
        async with self.database.read() as transaction:
            run = await store.get_run(transaction, context.project, context.id)
            row = await store.get_training(
                transaction, context.project, request.training.rpartition("/")[2]
            )
        if run.state == RUN_STATE_CANCELLED:
            raise Cancelled("RUN_CANCELLED", "the run was cancelled")
        data = json.loads(row.document)
        training = document.read(data)
        declared = data["spec"].get("serving", {})
        try:
            return await self._run(context, run, training, row.document_hash, declared)
        except VolaryError as error:
            run.state, run.error_reason, run.error = RUN_STATE_FAILED, error.reason, error.message
            await self._save(context, run)
            raise

    async def _run(
        self,
        context: OperationContext,
        run: Run,
        training: Training,
        document_hash: str,
        declared: Mapping[str, Any],
    ) -> Run:
        spec = training.spec
        training_set = await self.sets.get(run.training_set)
        order = _order(training, training_set)
        parts = _identity_parts(training, training_set, document_hash)
        run.identity = identity.identity_of(parts)
        run.identity_parts.update(parts)
        run.parameters.update({"epochs": str(spec.optimiser.epochs), "seed": str(spec.seed)})
        run.state = RUN_STATE_RUNNING
        run.start_time.CopyFrom(from_us(self.clock.now_us()))
        await self._save(context, run)
        with self._scratch() as folder:
            result = await self._train(context, run.training_set, order, folder)
            await self._show(context, "registering", 0.95)
            _require_served(spec.precision, result)
            serving = _serving(declared, result)
            golden = _golden(folder, spec.precision, result)
            attachments = await self._attach(folder, golden, serving, result["calibration"])
            version = await self._register(
                context, run, training, training_set, folder, result, attachments
            )
        run.model_version, run.digest = version.name, version.digest
        run.weights_hash = result["weights_hash"]
        run.metrics.update(result["metrics"])
        run.state = RUN_STATE_SUCCEEDED
        await self._save(context, run)
        return run

    async def verify_run(
        self, context: OperationContext, request: VerifyRunRequest
    ) -> VerifyRunResponse:
        """Train again from a version's lineage; say whether the weights are the same."""
        version = await self.versions.get(request.model_version)
        async with self.database.read() as transaction:
            run = await store.get_run(
                transaction, context.project, version.lineage.run.rpartition("/")[2]
            )
            row = await store.get_training(
                transaction, context.project, run.training.rpartition("/")[2]
            )
        training = document.read(json.loads(row.document))
        training_set = await self.sets.get(run.training_set)
        parts = _identity_parts(training, training_set, row.document_hash)
        with self._scratch() as folder:
            order = _order(training, training_set)
            result = await self._train(context, run.training_set, order, folder, is_tracked=False)
        recorded = version.lineage.weights_hash
        return VerifyRunResponse(
            identical=result["weights_hash"] == recorded,
            recorded_weights_hash=recorded,
            weights_hash=result["weights_hash"],
            differing_parts=sorted(
                name for name, value in parts.items() if run.identity_parts[name] != value
            ),
        )

    async def _train(
        self,
        context: OperationContext,
        training_set: str,
        order: dict[str, Any],
        folder: Path,
        *,
        is_tracked: bool = True,
    ) -> dict[str, Any]:
        """Run the process on a folder and return its result; metrics of a tracked run are kept."""

        async def report(line: dict[str, Any]) -> None:
            if is_tracked:
                await self.tracker.log(context.project, context.id, line["step"], line["metrics"])
            await self._show(context, "training", 0.05 + 0.85 * line["step"] / line["of"])

        await self._show(context, "reading", 0.0)
        await self.sets.save(training_set, folder / "rows.arrow")
        (folder / "order.json").write_text(json.dumps(order))
        await self._show(context, "training", 0.05)
        await process.train(
            folder,
            niceness=self.settings.niceness,
            threads=order["threads"],
            timeout_s=self.settings.run_timeout_s,
            report=report,
        )
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result

    async def _register(
        self,
        context: OperationContext,
        run: Run,
        training: Training,
        training_set: TrainingSet,
        folder: Path,
        result: Mapping[str, Any],
        attachments: Mapping[str, str],
    ) -> ModelVersion:
        variants = [await self._variant(folder, row) for row in result["variants"]]
        served = training.spec.precision
        graph = _graph_file(folder, served).read_bytes()
        start, end = window_us(training_set)
        version = ModelVersion(
            digest=await self.versions.upload(graph, ARTIFACT_KIND_ONNX),
            kind=ARTIFACT_KIND_ONNX,
            inputs=[
                TensorSpec(name="features", datatype="FP32", shape=[-1, len(result["features"])])
            ],
            outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
            feature_set=training_set.feature_set,
            schema_hash=training_set.schema_hash,
            metrics=result["metrics"],
            threshold=training.spec.evaluation.decision_threshold,
            score_distribution=_distribution(result),
            variants=variants,
            precision=served,
            attachments=attachments,
            lineage=Lineage(
                run=run.name,
                training_set=run.training_set,
                snapshots=training_set.snapshots,
                train_start_time=from_us(start),
                train_end_time=from_us(end),
                run_identity=run.identity,
                code_hash=run.identity_parts["code"],
                environment_hash=run.identity_parts["environment"],
                weights_hash=result["weights_hash"],
                trigger=run.trigger,
            ),
        )
        model = f"projects/{context.project}/models/{training.spec.model}"
        return await self.versions.create(model, version, context.request_id("register"))

    async def _variant(self, folder: Path, row: Mapping[str, Any]) -> Variant:
        """Store a variant that passed; return what is known of it."""
        digest = ""
        if not row["refusal"]:
            data = _graph_file(folder, row["precision"]).read_bytes()
            digest = await self.versions.upload(data, ARTIFACT_KIND_ONNX)
        return Variant(digest=digest, **row)

    async def _attach(
        self,
        folder: Path,
        golden: bytes,
        serving: Mapping[str, Any],
        calibration: Mapping[str, Any] | None,
    ) -> dict[str, str]:
        """Store what belongs to a version beside its graph; return the digests by role."""
        weights = (folder / "weights.safetensors").read_bytes()
        documents = {
            "golden_rows": golden,
            "serving": json.dumps(serving, sort_keys=True).encode(),
        }
        if calibration is not None:
            documents["calibration"] = json.dumps(calibration).encode()
        digests = {"weights": await self.versions.upload(weights, ARTIFACT_KIND_SAFETENSORS)}
        for role, data in documents.items():
            digests[role] = await self.versions.upload(data, ARTIFACT_KIND_DOCUMENT)
        return digests

    async def _save(self, context: OperationContext, run: Run) -> None:
        if run.state in (RUN_STATE_SUCCEEDED, RUN_STATE_FAILED):
            run.end_time.CopyFrom(from_us(self.clock.now_us()))
        await self.tracker.save(context.project, context.id, run)

    async def _show(self, context: OperationContext, stage: str, progress: float) -> None:
        name = f"projects/{context.project}/runs/{context.id}"
        await context.progress(RunMetadata(run=name, stage=stage, progress=progress))

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Give a folder that is gone afterwards."""
        home = self.settings.data_dir / "runs"
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            yield Path(scratch)


def window_us(training_set: TrainingSet) -> tuple[int, int]:
    """Return the training window in UTC microseconds; the hold-out is a set of its own."""
    start, end = to_us(training_set.start_time), to_us(training_set.end_time)
    if end <= start or training_set.rows == 0:
        raise FailedPrecondition("WINDOW_EMPTY", "the training set has no rows to train on")
    return start, end


def _graph_file(folder: Path, precision: str) -> Path:
    return folder / ("model.onnx" if precision == AS_TRAINED else f"{precision}.onnx")


def _require_served(precision: str, result: Mapping[str, Any]) -> None:
    """Raise FailedPrecondition `VARIANT_REFUSED` unless what is to be served passed its gates."""
    for row in result["variants"]:
        if row["precision"] == precision:
            require_passed(row)


def _golden(folder: Path, precision: str, result: Mapping[str, Any]) -> bytes:
    """Return the golden rows; a variant reproduces them within its own tolerance."""
    golden = json.loads((folder / "golden.json").read_bytes())
    for row in result["variants"]:
        if row["precision"] == precision:
            golden["tolerance"] += row["tolerance"]
    return json.dumps(golden).encode()


def _distribution(result: Mapping[str, Any]) -> ScoreDistribution | None:
    found = result["score_distribution"]
    return None if found is None else ScoreDistribution(**found)


def _serving(declared: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the declaration with the names of the input's columns; raise InvalidArgument."""
    found = {**declared, "features": result["features"]}
    check_data(Serving, found, "spec.serving").require_features()
    return found


def _order(training: Training, training_set: TrainingSet) -> dict[str, Any]:
    spec = training.spec
    start, end = window_us(training_set)
    return {
        "start_us": start,
        "end_us": end,
        "network": spec.network.model_dump(),
        "optimiser": spec.optimiser.model_dump(),
        "seed": spec.seed,
        "threads": spec.threads,
        "validation_share": spec.evaluation.validation_share,
        "decision_threshold": spec.evaluation.decision_threshold,
        "variants": [variant.model_dump() for variant in spec.variants],
    }


def _identity_parts(
    training: Training, training_set: TrainingSet, document_hash: str
) -> dict[str, str]:
    start, end = window_us(training_set)
    return {
        "config": document_hash,
        "code": identity.code_hash(CODE),
        "data": training_set.content_hash,
        "window": f"{start}-{end}",
        "environment": identity.environment_hash(),
        "seeds": str(training.spec.seed),
        "threads": str(training.spec.threads),
        "world_size": "1",
        "device": "cpu",
    }
