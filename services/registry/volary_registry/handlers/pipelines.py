"""A version that is declared as a pipeline becomes one that has a graph."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from volary.registry.v1.model_pb2 import ARTIFACT_KIND_ONNX, ModelVersion
from volary.registry.v1.model_pb2 import Pipeline as PipelineMessage
from volary.registry.v1.model_pb2 import TensorSpec as TensorSpecMessage
from volary.registry.v1.model_pb2 import Wire as WireMessage
from volary_kit.artifacts import ArtifactStore, digest_of
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition

from volary_registry.domain.pipelines import Pipeline, Step, TensorSpec, Wire, compose, signature
from volary_registry.store import artifacts


class Pipelines:
    """Composes the steps of a version, and stores what comes out."""

    def __init__(self, database: Database, files: ArtifactStore, clock: Clock) -> None:
        self._database = database
        self._files = files
        self._clock = clock

    async def fill(self, version: ModelVersion) -> None:
        """Give a version with a pipeline its digest, kind, inputs and outputs.

        Raises FailedPrecondition `ARTIFACT_NOT_FOUND` or `PIPELINE_DIGEST_MISMATCH`, and what
        composing raises.
        """
        await self._require_steps(version.pipeline)
        pipeline = _pipeline(version.pipeline)
        data = await asyncio.to_thread(self._composed, pipeline)
        digest = digest_of(data)
        if version.digest not in ("", digest):
            raise FailedPrecondition(
                "PIPELINE_DIGEST_MISMATCH",
                "the composed graph has another digest",
                {"digest": digest},
                field="model_version.digest",
            )
        await asyncio.to_thread(self._files.put_bytes, data, expected=digest)
        async with self._database.transaction() as transaction:
            await artifacts.add(
                transaction,
                digest=digest,
                kind=ARTIFACT_KIND_ONNX,
                size_bytes=len(data),
                create_us=self._clock.now_us(),
            )
        inputs, outputs = await asyncio.to_thread(signature, data)
        version.digest, version.kind = digest, ARTIFACT_KIND_ONNX
        del version.inputs[:], version.outputs[:]
        version.inputs.extend(_specs(inputs))
        version.outputs.extend(_specs(outputs))

    async def _require_steps(self, pipeline: PipelineMessage) -> None:
        async with self._database.read() as transaction:
            for at, step in enumerate(pipeline.steps):
                found = await artifacts.find(transaction, step.digest)
                if found is None or found.kind != ARTIFACT_KIND_ONNX:
                    raise FailedPrecondition(
                        "ARTIFACT_NOT_FOUND",
                        f"step {step.name} names no ONNX graph that is stored",
                        {"digest": step.digest},
                        field=f"model_version.pipeline.steps[{at}].digest",
                    )

    def _composed(self, pipeline: Pipeline) -> bytes:
        digests = {step.digest for step in pipeline.steps}
        return compose(pipeline, {digest: self._files.read(digest) for digest in digests})


def _pipeline(message: PipelineMessage) -> Pipeline:
    steps = tuple(Step(each.name, each.digest, _wires(each.inputs)) for each in message.steps)
    return Pipeline(steps, _wires(message.outputs))


def _wires(messages: Iterable[WireMessage]) -> tuple[Wire, ...]:
    return tuple(Wire(each.tensor, each.step, each.source) for each in messages)


def _specs(specs: Iterable[TensorSpec]) -> list[TensorSpecMessage]:
    return [
        TensorSpecMessage(name=each.name, datatype=each.datatype, shape=each.shape)
        for each in specs
    ]
