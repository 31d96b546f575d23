"""The long work of a variant: from a version that is registered to one in smaller numbers."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volary.registry.v1.model_pb2 import (
    ARTIFACT_KIND_DOCUMENT,
    ARTIFACT_KIND_ONNX,
    ModelVersion,
    ScoreDistribution,
    Variant,
)
from volary.trainer.v1.trainer_service_pb2 import (
    BuildVariantRequest,
    BuildVariantResponse,
    RunMetadata,
)
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition
from volary_kit.operations import OperationContext
from volary_kit.timestamps import to_us

from volary_trainer import process, store
from volary_trainer.domain import document
from volary_trainer.domain.document import AS_TRAINED, Training
from volary_trainer.peers import TrainingSets, Versions
from volary_trainer.settings import TrainerSettings

LOG_LOSS = "log_loss"
GOLDEN, ONE_THREAD = "golden_rows", 1
# what belongs to the version as it was built, and to no other
OWN = ("name", "version", "approval", "etag", "create_time", "creator", "labels", "variants")


@dataclass(frozen=True)
class Builder:
    """Builds variants of registered versions, and registers those that pass."""

    settings: TrainerSettings
    database: Database
    sets: TrainingSets
    versions: Versions

    async def build(
        self, context: OperationContext, request: BuildVariantRequest
    ) -> BuildVariantResponse:
        """Build one on the rows that the version was trained on; raise FailedPrecondition."""
        version = await self.versions.get(request.model_version)
        _require_as_trained(version)
        training = await self._training(context.project, version)
        declared = _declared(request, training)
        home = self.settings.data_dir / "variants"
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            folder = Path(scratch)
            await context.progress(RunMetadata(stage="reading", progress=0.1))
            await self._lay_out(folder, version, training, declared)
            await context.progress(RunMetadata(stage="building", progress=0.3))
            await process.work(
                process.BUILD_VARIANT,
                folder,
                niceness=self.settings.niceness,
                threads=ONE_THREAD,
                timeout_s=self.settings.run_timeout_s,
            )
            result = json.loads((folder / "result.json").read_text())
            require_passed(result["variant"])
            await context.progress(RunMetadata(stage="registering", progress=0.9))
            return await self._register(context, version, folder, result)

    async def _training(self, project: str, version: ModelVersion) -> Training:
        """Return the training that the version came from."""
        run_name = version.lineage.run
        if not run_name or not version.lineage.training_set:
            raise FailedPrecondition(
                "NO_TRAINING_SET",
                "no training of this version is recorded, and so no rows to judge a variant on",
            )
        async with self.database.read() as transaction:
            run = await store.get_run(transaction, project, run_name.rpartition("/")[2])
            row = await store.get_training(transaction, project, run.training.rpartition("/")[2])
        return document.read(json.loads(row.document))

    async def _lay_out(
        self, folder: Path, version: ModelVersion, training: Training, declared: dict[str, Any]
    ) -> None:
        """Write what the process reads."""
        lineage, evaluation = version.lineage, training.spec.evaluation
        order = {
            "start_us": to_us(lineage.train_start_time),
            "end_us": to_us(lineage.train_end_time),
            "validation_share": evaluation.validation_share,
            "decision_threshold": version.threshold,
            "variant": declared,
        }
        (folder / "order.json").write_text(json.dumps(order))
        (folder / "model.onnx").write_bytes(await self.versions.download(version.digest))
        golden = await self.versions.download(version.attachments[GOLDEN])
        (folder / "golden.json").write_bytes(golden)
        await self.sets.save(lineage.training_set, folder / "rows.arrow")

    async def _register(
        self,
        context: OperationContext,
        version: ModelVersion,
        folder: Path,
        result: dict[str, Any],
    ) -> BuildVariantResponse:
        """Register the variant: lineage, weights and declarations are the version's."""
        graph = (folder / "variant.onnx").read_bytes()
        golden = json.loads((folder / "golden.json").read_text())
        golden["tolerance"] += result["variant"]["tolerance"]
        record = Variant(
            digest=await self.versions.upload(graph, ARTIFACT_KIND_ONNX), **result["variant"]
        )
        made = ModelVersion()
        made.CopyFrom(version)
        for name in (*OWN, "metrics"):
            made.ClearField(name)
        made.digest, made.precision = record.digest, record.precision
        made.variants.append(record)
        made.metrics.update(result["metrics"])
        made.score_distribution.CopyFrom(ScoreDistribution(**result["score_distribution"]))
        made.attachments[GOLDEN] = await self.versions.upload(
            json.dumps(golden).encode(), ARTIFACT_KIND_DOCUMENT
        )
        model = version.name.rpartition("/versions/")[0]
        added = await self.versions.create(model, made, context.request_id("register"))
        return BuildVariantResponse(model_version=added.name, variant=record)


def _require_as_trained(version: ModelVersion) -> None:
    """Raise FailedPrecondition unless the graph is one network in the numbers of its training."""
    is_one_graph = not version.HasField("pipeline")
    if version.precision in ("", AS_TRAINED) and is_one_graph and GOLDEN in version.attachments:
        return
    raise FailedPrecondition(
        "NOT_AS_TRAINED",
        "a variant is built of a version as it was trained, with golden rows, of a single graph",
        {"precision": version.precision},
    )


def _declared(request: BuildVariantRequest, training: Training) -> dict[str, Any]:
    """Return the limits of the request, else those that the training declares."""
    if request.tolerance:
        return {
            "precision": request.precision,
            "tolerance": request.tolerance,
            "metric": request.metric or LOG_LOSS,
            "margin": request.margin,
        }
    for variant in training.spec.variants:
        if variant.precision == request.precision:
            return variant.model_dump()
    raise FailedPrecondition(
        "VARIANT_UNDECLARED",
        f"the training declares no {request.precision} variant: say tolerance and margin",
        {"precision": request.precision},
    )


def require_passed(record: dict[str, Any]) -> None:
    """Raise FailedPrecondition `VARIANT_REFUSED` for a variant that did not pass its gates."""
    if record["refusal"]:
        raise FailedPrecondition(
            "VARIANT_REFUSED",
            f"the {record['precision']} variant did not pass: {record['refusal']}",
            {"precision": record["precision"], "max_error": str(record["max_error"])},
        )
