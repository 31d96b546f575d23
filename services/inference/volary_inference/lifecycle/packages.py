"""What registry holds of a version, fetched once and kept on disk under its digest."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.json_format import MessageToDict
from volary.registry.v1 import registry_service_pb2, registry_service_pb2_grpc
from volary_kit.artifacts import ArtifactStore
from volary_kit.calls import act_for
from volary_kit.errors import DataLoss, FailedPrecondition, InvalidArgument

from volary_inference.domain.predictions import VersionKey
from volary_inference.lifecycle.package import Description, Package, Reading

AS_TRAINED = "fp32"
GOLDEN_ROWS, SERVING, CALIBRATION = "golden_rows", "serving", "calibration"
MAX_DOCUMENT_BYTES = 16 << 20


class PackageSource(Protocol):
    """Where packages come from."""

    async def fetch(self, key: VersionKey, digest: str) -> Package:
        """Return a version's package; see `RegistryPackages` for the errors."""
        ...


class RegistryPackages:
    """Packages from registry, behind a cache that outlives the process."""

    def __init__(self, channel: grpc.aio.Channel, folder: Path, max_bytes: int) -> None:
        self._models = registry_service_pb2_grpc.RegistryServiceStub(channel)
        self._artifacts = registry_service_pb2_grpc.ArtifactServiceStub(channel)
        self._store = ArtifactStore(folder / "artifacts")
        self._folder = folder / "versions"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._max_bytes = max_bytes

    async def fetch(self, key: VersionKey, digest: str) -> Package:
        """Return a version's package, from disk when all of it is there.

        Raises FailedPrecondition `DIGEST_MISMATCH` when registry has the version under another
        digest, InvalidArgument when the bytes are not what the digest says or too many, and
        what registry raises.
        """
        with act_for(key.project):
            description = self._read(key)
            if description is None or description.digest != digest:
                description = await self._describe(key, digest)
            graph = await self._bytes(digest, self._max_bytes)
            golden = await self._document(description.golden_digest, "GOLDEN_ROWS_INVALID")
            serving = await self._document(description.serving_digest, "SERVING_INVALID")
            calibration = await self._document(
                description.calibration_digest, "CALIBRATION_INVALID"
            )
        await asyncio.to_thread(self._write, key, description)
        reading = Reading(len(graph), partial(self._store.read, digest))
        return Package(description, graph, golden, serving, calibration, reading)

    async def _describe(self, key: VersionKey, digest: str) -> Description:
        request = registry_service_pb2.GetModelVersionRequest(name=key.name)
        version = await self._models.GetModelVersion(request)
        if version.digest != digest:
            raise FailedPrecondition(
                "DIGEST_MISMATCH", "registry has this version under another digest"
            )
        attached = version.attachments
        return Description(
            digest,
            version.feature_set,
            version.schema_hash,
            golden_digest=attached.get(GOLDEN_ROWS, ""),
            serving_digest=attached.get(SERVING, ""),
            calibration_digest=attached.get(CALIBRATION, ""),
            precision="" if version.precision == AS_TRAINED else version.precision,
            pipeline=MessageToDict(version.pipeline) if version.HasField("pipeline") else None,
        )

    async def _bytes(self, digest: str, max_bytes: int) -> bytes:
        if self._store.has(digest):
            try:
                return await asyncio.to_thread(self._store.read, digest)
            except DataLoss:  # the copy on disk is damaged: fetch it again
                self._store.path(digest).unlink(missing_ok=True)
        await self._store.put(self._download(digest), expected=digest, max_bytes=max_bytes)
        return await asyncio.to_thread(self._store.read, digest)

    async def _download(self, digest: str) -> AsyncIterator[bytes]:
        request = registry_service_pb2.DownloadArtifactRequest(digest=digest)
        async for part in self._artifacts.DownloadArtifact(request):
            yield part.chunk

    async def _document(self, digest: str, reason: str) -> Mapping[str, Any] | None:
        if not digest:
            return None
        data = await self._bytes(digest, MAX_DOCUMENT_BYTES)
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise InvalidArgument(reason, "what belongs to the version is not a JSON object")
        return document

    def _path(self, key: VersionKey) -> Path:
        return self._folder / f"{key.project}.{key.model}.{key.version}.json"

    def _read(self, key: VersionKey) -> Description | None:
        try:
            return Description(**json.loads(self._path(key).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, key: VersionKey, description: Description) -> None:
        draft = self._folder / f".{uuid.uuid4().hex}.draft"
        draft.write_text(json.dumps(asdict(description)), "utf-8")
        draft.replace(self._path(key))
