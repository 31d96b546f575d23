"""The asyncio client."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Self

import grpc
import pyarrow as pa
from inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from volary.features.v1.features_service_pb2 import ReadTrainingSetRequest
from volary.features.v1.features_service_pb2_grpc import FeaturesServiceStub
from volary.gateway.v1.evidence_service_pb2_grpc import EvidenceServiceStub
from volary.gateway.v1.identity_service_pb2_grpc import IdentityServiceStub
from volary.gateway.v1.replica_service_pb2_grpc import ReplicaServiceStub
from volary.gateway.v1.traffic_service_pb2_grpc import TrafficServiceStub
from volary.inference.v1.prediction_service_pb2 import PredictRequest, PredictResponse
from volary.inference.v1.prediction_service_pb2_grpc import PredictionServiceStub
from volary.ingest.v1.ingest_service_pb2 import (
    PushedRecord,
    PushRecordsRequest,
    PushRecordsResponse,
    ReadSnapshotRequest,
)
from volary.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from volary.monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from volary.registry.v1.model_pb2 import Artifact, ArtifactKind, Production
from volary.registry.v1.registry_service_pb2 import (
    ArtifactHeader,
    DownloadArtifactRequest,
    GetProductionRequest,
    UploadArtifactRequest,
)
from volary.registry.v1.registry_service_pb2_grpc import (
    ArtifactServiceStub,
    RegistryServiceStub,
)
from volary.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub
from volary_kit.client import connect_aio
from volary_kit.outgoing import Retry
from volary_kit.rules.tracing import ClientTracer
from volary_longrunning.operations_pb2 import Operation
from volary_longrunning.operations_pb2_grpc import OperationsStub

from volary_client import operations
from volary_client.operations import M, Progress
from volary_client.tables import table_of
from volary_client.values import Scalar, record_of, timestamp_of, value_of

CHUNK_BYTES = 1 << 20
DEFAULT_PROJECT = "default"


class AsyncClient:
    """Every service of the mesh behind one address and one API key.

    The attributes named after services are their generated stubs; a call without a timeout gets
    its method's own default, an unavailable server is tried again with the same request id, and
    every failure is a `volary_kit.errors.VolaryError`.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        *,
        project: str = DEFAULT_PROJECT,
        timeout_s: float | None = None,
        retry: Retry | None = None,
        tls: grpc.ChannelCredentials | None = None,
        tracer: ClientTracer | None = None,
    ) -> None:
        self.project = project
        self.channel = connect_aio(
            address, api_key, timeout_s=timeout_s, retry=retry or Retry(), tls=tls, tracer=tracer
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close()

    @cached_property
    def ingest(self) -> IngestServiceStub:
        """Sources, pulls, pushes, snapshots."""
        return IngestServiceStub(self.channel)

    @cached_property
    def features(self) -> FeaturesServiceStub:
        """Views, sets, training sets, online values."""
        return FeaturesServiceStub(self.channel)

    @cached_property
    def trainer(self) -> TrainerServiceStub:
        """Trainings, runs, comparisons."""
        return TrainerServiceStub(self.channel)

    @cached_property
    def registry(self) -> RegistryServiceStub:
        """Models, versions, evaluations, deployments."""
        return RegistryServiceStub(self.channel)

    @cached_property
    def artifacts(self) -> ArtifactServiceStub:
        """Artifacts by digest."""
        return ArtifactServiceStub(self.channel)

    @cached_property
    def inference(self) -> GRPCInferenceServiceStub:
        """The Open Inference Protocol V2."""
        return GRPCInferenceServiceStub(self.channel)

    @cached_property
    def predictions(self) -> PredictionServiceStub:
        """Predictions by entity."""
        return PredictionServiceStub(self.channel)

    @cached_property
    def monitor(self) -> MonitorServiceStub:
        """Quality, drift, alerts."""
        return MonitorServiceStub(self.channel)

    @cached_property
    def traffic(self) -> TrafficServiceStub:
        """What serves."""
        return TrafficServiceStub(self.channel)

    @cached_property
    def replicas(self) -> ReplicaServiceStub:
        """Inference replicas and what they hold."""
        return ReplicaServiceStub(self.channel)

    @cached_property
    def evidence(self) -> EvidenceServiceStub:
        """What Envoy saw."""
        return EvidenceServiceStub(self.channel)

    @cached_property
    def identity(self) -> IdentityServiceStub:
        """Projects and keys."""
        return IdentityServiceStub(self.channel)

    @cached_property
    def operations(self) -> OperationsStub:
        """Long-running operations."""
        return OperationsStub(self.channel)

    def name(self, *parts: str | int) -> str:
        """Return a resource name: `name("models", "m")` is `projects/{project}/models/m`."""
        return "/".join(["projects", self.project, *map(str, parts)])

    async def predict(
        self,
        model: str,
        entity_keys: Mapping[str, str],
        request_fields: Mapping[str, Scalar] | None = None,
        *,
        event_time: datetime | None = None,
        min_watermark: datetime | None = None,
        subject: str = "",
        version: int = 0,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> PredictResponse:
        """Predict by entity, as of `event_time` (default: now).

        Calls that wait for one another go by `priority`: 1 before 2, the normal one, before 3.
        """
        request = PredictRequest(
            model=model,
            version=version,
            entity_keys=entity_keys,
            request_fields={k: value_of(v) for k, v in (request_fields or {}).items()},
            event_time=event_time and timestamp_of(event_time),
            min_watermark=min_watermark and timestamp_of(min_watermark),
            subject=subject,
            priority=priority,
        )
        return await self.predictions.Predict(request, timeout=timeout_s)

    async def push(
        self,
        source: str,
        records: Sequence[Mapping[str, Scalar]],
        *,
        watermark: datetime | None = None,
    ) -> PushRecordsResponse:
        """Push records of a source, and say up to when nothing is missing."""
        request = PushRecordsRequest(
            source=self.name("sources", source),
            records=[PushedRecord(record=record_of(record)) for record in records],
            watermark=watermark and timestamp_of(watermark),
        )
        return await self.ingest.PushRecords(request)

    async def wait(
        self, operation: Operation, response: type[M], on_progress: Progress | None = None
    ) -> M:
        """Return what a long-running operation answers; raise what it fails with."""
        return await operations.wait(self.operations, operation, response, on_progress=on_progress)

    async def production(self, model: str) -> Production:
        """Say what is in production, trained when, on what, against the previous."""
        return await self.registry.GetProduction(
            GetProductionRequest(model=self.name("models", model))
        )

    async def read_snapshot(self, source: str, snapshot: str = "latest") -> pa.Table:
        """Return the rows of a snapshot."""
        name = self.name("sources", source, "snapshots", snapshot)
        return await table_of(self.ingest.ReadSnapshot(ReadSnapshotRequest(name=name)))

    async def read_training_set(self, training_set: str) -> pa.Table:
        """Return the rows of a training set; `training_set` is its whole name."""
        return await table_of(
            self.features.ReadTrainingSet(ReadTrainingSetRequest(name=training_set))
        )

    async def upload(self, data: bytes, kind: ArtifactKind.ValueType) -> Artifact:
        """Store an artifact and return it, named by its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        header = ArtifactHeader(digest=digest, kind=kind, size_bytes=len(data))
        chunks = (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
        parts = chain(
            [UploadArtifactRequest(header=header)],
            (UploadArtifactRequest(chunk=chunk) for chunk in chunks),
        )
        return await self.artifacts.UploadArtifact(parts)

    async def download(self, digest: str) -> bytes:
        """Return an artifact's bytes, checked against its digest."""
        request = DownloadArtifactRequest(digest=digest)
        data = b"".join([piece.chunk async for piece in self.artifacts.DownloadArtifact(request)])
        if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise ValueError(f"the bytes that came are not {digest}")
        return data
