"""`volary.registry.v1.ArtifactService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from volary.registry.v1 import registry_service_pb2 as pb
from volary.registry.v1.model_pb2 import (
    ARTIFACT_KIND_ONNX,
    ARTIFACT_KIND_SAFETENSORS,
    Artifact,
)
from volary.registry.v1.registry_service_pb2_grpc import ArtifactServiceServicer
from volary_kit.artifacts import ArtifactStore, check_digest
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.errors import InvalidArgument
from volary_kit.graphs import check_graph

from volary_registry.domain.weights import check_weights
from volary_registry.handlers import messages
from volary_registry.settings import RegistrySettings
from volary_registry.store import artifacts

Context = grpc.aio.ServicerContext[Any, Any]
CHECKS = {ARTIFACT_KIND_ONNX: check_graph, ARTIFACT_KIND_SAFETENSORS: check_weights}


class ArtifactHandler(ArtifactServiceServicer):
    """Artifacts by digest: bytes in a content-addressed folder, the list of them in Postgres."""

    def __init__(
        self, database: Database, files: ArtifactStore, clock: Clock, settings: RegistrySettings
    ) -> None:
        self._database = database
        self._files = files
        self._clock = clock
        self._settings = settings

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Context
    ) -> Artifact:
        header = await _header(request_iterator)
        limit = min(header.size_bytes, self._settings.max_artifact_bytes)
        digest = await self._files.put(
            _chunks(request_iterator), expected=header.digest, max_bytes=limit
        )
        await self._check(header)
        async with self._database.transaction() as transaction:
            await artifacts.add(
                transaction,
                digest=digest,
                kind=header.kind,
                size_bytes=self._files.size(digest),
                create_us=self._clock.now_us(),
            )
            return messages.artifact_of(await artifacts.get(transaction, digest))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        async with self._database.read() as transaction:
            await artifacts.get(transaction, check_digest(request.digest))
        async for chunk in self._files.open(request.digest):
            yield pb.DownloadArtifactResponse(chunk=chunk)

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Context) -> Artifact:
        async with self._database.read() as transaction:
            return messages.artifact_of(await artifacts.get(transaction, request.digest))

    async def _check(self, header: pb.ArtifactHeader) -> None:
        """Refuse what must not be stored; its file stays nameless, since no row points to it."""
        check = CHECKS.get(header.kind)
        if check is None:
            return
        if self._files.size(header.digest) > self._settings.max_graph_bytes:
            raise InvalidArgument("ARTIFACT_TOO_LARGE", "the artifact is too large to be checked")
        data = await asyncio.to_thread(self._files.read, header.digest)
        await asyncio.to_thread(check, data)


async def _header(requests: AsyncIterator[pb.UploadArtifactRequest]) -> pb.ArtifactHeader:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise InvalidArgument("HEADER_MISSING", "the first message is the header", field="header")


async def _chunks(requests: AsyncIterator[pb.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidArgument("CHUNK_MISSING", "bytes follow the header", field="chunk")
        yield request.chunk
