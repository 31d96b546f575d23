"""Versions as V2 describes them: metadata, configuration, statistics, index."""

from __future__ import annotations

import json
from collections.abc import Iterable

from inference import grpc_service_pb2 as pb

from volary_inference.domain.batching import LAST, NORMAL
from volary_inference.domain.responses import CacheCounts
from volary_inference.domain.signatures import TensorSpec
from volary_inference.domain.statistics import Total
from volary_inference.domain.versions import Serving, State, Version

NANOS = 1_000_000_000
SPECIAL_TYPES = {"BYTES": "TYPE_STRING"}
INDEX_STATES = {
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.FAILED: "UNAVAILABLE",
}


def metadata_of(
    version: Version, serving: Serving, versions: Iterable[Version]
) -> pb.ModelMetadataResponse:
    """Describe the tensors of one version, and name all that are ready."""
    return pb.ModelMetadataResponse(
        name=version.key.model,
        versions=[str(each.key.version) for each in versions],
        properties={"volary_precision": version.precision} if version.precision else None,
        platform=serving.platform,
        inputs=[_tensor(spec) for spec in serving.signature.inputs],
        outputs=[_tensor(spec) for spec in serving.signature.outputs],
    )


def config_of(version: Version, serving: Serving) -> pb.ModelConfig:
    """Describe how one version is served; a batched one's shapes leave out the batch."""
    model = version.key.model
    signature, policy = serving.signature, serving.batcher.policy
    skip = 1 if signature.is_batched else 0
    return pb.ModelConfig(
        name=model,
        platform=serving.platform,
        parameters=_parameters(version),
        backend=serving.platform.partition("_")[0],
        max_batch_size=policy.max_rows if signature.is_batched else 0,
        input=[
            pb.ModelInput(name=spec.name, data_type=_data_type(spec), dims=spec.shape[skip:])
            for spec in signature.inputs
        ],
        output=[
            pb.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=spec.shape[skip:])
            for spec in signature.outputs
        ],
        instance_group=[
            pb.ModelInstanceGroup(
                name=f"{model}_0", count=serving.instances, kind=pb.ModelInstanceGroup.KIND_CPU
            )
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=[policy.max_rows],
            max_queue_delay_microseconds=round(policy.max_delay_s * 1_000_000),
            priority_levels=LAST,
            default_priority_level=NORMAL,
        )
        if signature.is_batched
        else None,
    )


def _parameters(version: Version) -> dict[str, pb.ModelParameter]:
    """Return what V2 has no field for."""
    if version.pipeline is None:
        return {}
    text = json.dumps(version.pipeline, sort_keys=True)
    return {"volary_pipeline": pb.ModelParameter(string_value=text)}


def statistics_of(version: Version, serving: Serving) -> pb.ModelStatistics:
    """Return what a version did since it was loaded."""
    seen = serving.snapshot()
    responses = serving.guard.responses
    cache = CacheCounts() if responses is None else responses.counts()
    return pb.ModelStatistics(
        name=version.key.model,
        version=str(version.key.version),
        last_inference=seen.last_us // 1_000,
        inference_count=seen.rows,
        execution_count=seen.run.count,
        inference_stats=pb.InferStatistics(
            success=_duration(seen.success),
            fail=_duration(seen.failure),
            queue=_duration(seen.queue),
            compute_infer=_duration(seen.run),
            cache_hit=_duration(cache.hits),
            cache_miss=_duration(cache.misses),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(total))
            for size, total in sorted(seen.by_batch_size.items())
        ],
    )


def index_of(version: Version) -> pb.RepositoryIndexResponse.ModelIndex:
    """Return one row of the index."""
    return pb.RepositoryIndexResponse.ModelIndex(
        name=version.key.model,
        version=str(version.key.version),
        state=INDEX_STATES[version.state],
        reason=version.error_reason,
    )


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=list(spec.shape)
    )


def _data_type(spec: TensorSpec) -> pb.DataType.ValueType:
    return pb.DataType.Value(SPECIAL_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"))


def _duration(total: Total) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=int(total.seconds * NANOS))
