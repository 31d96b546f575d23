"""What the trainer asks of features and registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import grpc.aio
from volary.features.v1.feature_pb2 import TrainingSet
from volary.features.v1.features_service_pb2 import GetTrainingSetRequest, ReadTrainingSetRequest
from volary.features.v1.features_service_pb2_grpc import FeaturesServiceStub
from volary.registry.v1.model_pb2 import ArtifactKind, ModelVersion
from volary.registry.v1.registry_service_pb2 import (
    ArtifactHeader,
    CreateModelVersionRequest,
    DownloadArtifactRequest,
    GetModelVersionRequest,
    UploadArtifactRequest,
)
from volary.registry.v1.registry_service_pb2_grpc import ArtifactServiceStub, RegistryServiceStub
from volary_kit.channels import Channels
from volary_kit.errors import DataLoss

CHUNK_BYTES = 1 << 20


class TrainingSets:
    """Training sets, read from features."""

    def __init__(self, channels: Channels) -> None:
        self._stub = FeaturesServiceStub(channels.to("features"))

    async def get(self, name: str) -> TrainingSet:
        """Return what is known of a training set."""
        return await self._stub.GetTrainingSet(GetTrainingSetRequest(name=name))

    async def save(self, name: str, path: Path) -> None:
        """Write the rows as one Arrow IPC stream; a broken stream leaves an unreadable file."""
        with path.open("wb") as file:
            async for piece in self._stub.ReadTrainingSet(ReadTrainingSetRequest(name=name)):
                file.write(piece.arrow_ipc)


class Versions:
    """Versions and their artifacts, in registry."""

    def __init__(self, channels: Channels) -> None:
        channel: grpc.aio.Channel = channels.to("registry")
        self._registry = RegistryServiceStub(channel)
        self._artifacts = ArtifactServiceStub(channel)

    async def get(self, name: str) -> ModelVersion:
        """Return a version."""
        return await self._registry.GetModelVersion(GetModelVersionRequest(name=name))

    async def upload(self, data: bytes, kind: ArtifactKind.ValueType) -> str:
        """Store bytes and return their digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        header = ArtifactHeader(digest=digest, kind=kind, size_bytes=len(data))
        parts = chain([UploadArtifactRequest(header=header)], _chunks(data))
        return (await self._artifacts.UploadArtifact(parts)).digest

    async def download(self, digest: str) -> bytes:
        """Return an artifact; raise DataLoss when it is not what its digest says."""
        replies = self._artifacts.DownloadArtifact(DownloadArtifactRequest(digest=digest))
        data = b"".join([reply.chunk async for reply in replies])
        if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise DataLoss(
                "DIGEST_MISMATCH", "the artifact that came is another", {"digest": digest}
            )
        return data

    async def create(self, model: str, version: ModelVersion, request_id: str) -> ModelVersion:
        """Register a version; `model` is its model's whole name."""
        request = CreateModelVersionRequest(
            parent=model, model_version=version, request_id=request_id
        )
        return await self._registry.CreateModelVersion(request)


def _chunks(data: bytes) -> Iterator[UploadArtifactRequest]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield UploadArtifactRequest(chunk=data[start : start + CHUNK_BYTES])
