"""Score a candidate and a baseline on the same rows."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from volary.registry.v1.model_pb2 import ModelVersion
from volary.trainer.v1.run_pb2 import Comparison, PairedDifference
from volary.trainer.v1.trainer_service_pb2 import CompareVersionsRequest, RunMetadata
from volary_kit.errors import FailedPrecondition
from volary_kit.operations import OperationContext
from volary_kit.timestamps import from_us, to_us

from volary_trainer.domain import scores
from volary_trainer.domain.scores import Floats
from volary_trainer.domain.table import Rows
from volary_trainer.peers import TrainingSets, Versions

FOREVER_US = 1 << 62


@dataclass(frozen=True)
class Comparer:
    """Reads rows and graphs, scores, and says how the versions differ."""

    folder: Path
    sets: TrainingSets
    versions: Versions

    async def compare(
        self, context: OperationContext, request: CompareVersionsRequest
    ) -> Comparison:
        """Return metrics of both and paired differences, on rows after the candidate's window."""
        await context.progress(RunMetadata(stage="reading", progress=0.1))
        candidate = await self.versions.get(request.candidate)
        baseline = await self.versions.get(request.baseline) if request.baseline else None
        rows = await self._rows(request, candidate)
        if len(rows) == 0:
            raise FailedPrecondition("NO_ROWS", "no labelled row lies in the hold-out")
        await context.progress(RunMetadata(stage="scoring", progress=0.5))
        scored = await self._score(candidate, rows)
        reply = _alone(rows, scored, candidate.threshold)
        if baseline is not None:
            _require_same_schema(candidate, baseline)
            other = await self._score(baseline, rows)
            _pair(reply, rows, (scored, other), (candidate.threshold, baseline.threshold))
        return reply

    async def _rows(self, request: CompareVersionsRequest, candidate: ModelVersion) -> Rows:
        trained_until = candidate.lineage.train_end_time
        start = request.start_time if request.HasField("start_time") else trained_until
        start_us = max(to_us(start), to_us(trained_until))
        end_us = to_us(request.end_time) if request.HasField("end_time") else FOREVER_US
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            path = Path(scratch) / "rows.arrow"
            await self.sets.save(request.training_set, path)
            rows = await asyncio.to_thread(_read, path)
        return rows.between(start_us, end_us)

    async def _score(self, version: ModelVersion, rows: Rows) -> Floats:
        graph = await self.versions.download(version.digest)
        return await asyncio.to_thread(_run, graph, rows)


def _read(path: Path) -> Rows:
    with pa.OSFile(str(path)) as file:
        return Rows.of(pa.ipc.open_stream(file).read_all())


def _run(graph: bytes, rows: Rows) -> Floats:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (scored, *_) = session.run(None, {session.get_inputs()[0].name: rows.features})
    return np.asarray(scored, dtype=np.float64).ravel()


def _alone(rows: Rows, scored: Floats, threshold: float) -> Comparison:
    return Comparison(
        rows=len(rows),
        positive_share=float((rows.labels > 0).mean()),
        candidate_metrics=scores.metrics(scored, rows.labels, threshold),
        start_time=from_us(int(rows.times_us[0])),
        end_time=from_us(int(rows.times_us[-1]) + 1),
    )


def _pair(
    reply: Comparison,
    rows: Rows,
    scored: tuple[Floats, Floats],
    thresholds: tuple[float, float],
) -> None:
    reply.baseline_metrics.update(scores.metrics(scored[1], rows.labels, thresholds[1]))
    for found in scores.differences(*scored, rows.labels, thresholds):
        reply.differences.append(
            PairedDifference(
                metric=found.metric,
                mean=found.mean,
                variance=found.variance,
                lower_bound=-found.bound,
                upper_bound=found.bound,
            )
        )
    right = [
        scores.correct(each, rows.labels, threshold)
        for each, threshold in zip(scored, thresholds, strict=True)
    ]
    reply.only_candidate_correct = int(np.count_nonzero(right[0] & ~right[1]))
    reply.only_baseline_correct = int(np.count_nonzero(right[1] & ~right[0]))


def _require_same_schema(candidate: ModelVersion, baseline: ModelVersion) -> None:
    if candidate.schema_hash != baseline.schema_hash:
        raise FailedPrecondition(
            "SCHEMA_MISMATCH",
            "the versions read different features; compare them on rows of their own",
            {"candidate": candidate.schema_hash, "baseline": baseline.schema_hash},
        )
