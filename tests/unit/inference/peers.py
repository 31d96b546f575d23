"""What a replica talks to, faked on the wire: gateway, registry and features on one port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from prometheus_client import CollectorRegistry
from volary.features.v1 import features_service_pb2, features_service_pb2_grpc
from volary.gateway.v1 import replica_pb2, replica_service_pb2, replica_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2, registry_service_pb2_grpc
from volary_kit.artifacts import digest_of
from volary_kit.clock import SystemClock
from volary_kit.errors import NotFound, VolaryError
from volary_kit.health import Health
from volary_kit.identity import (
    KEY_ISSUER,
    Jwks,
    SigningKey,
    Verifier,
    mint_api_key,
    mint_service_token,
    write_jwks,
)
from volary_kit.metrics import CallMetrics
from volary_kit.registration import Servicer
from volary_kit.server import Address, AioServer, Ruling
from volary_kit.timestamps import from_us

CLOCK = SystemClock()
PROJECT = "default"
LEASE_S = 3
WATERMARK_US = 1_700_000_000_000_000


class Keys:
    """The keys of a small mesh, and the files that hold them."""

    def __init__(self, folder: Path) -> None:
        self.jwks, self.service_key = folder / "jwks.json", folder / "inference.pem"
        self.issuer = SigningKey.generate("issuer")
        self._worker = SigningKey.generate("workflows")
        inference = SigningKey.generate("inference")
        inference.write(self.service_key)
        keys = [key.public_jwk() for key in (inference, self._worker)]
        write_jwks(self.jwks, [*keys, self.issuer.public_jwk(KEY_ISSUER)])

    def api_key(self, *roles: str, project: str = PROJECT, key_id: str | None = None) -> str:
        return mint_api_key(
            self.issuer,
            "tester",
            roles or ("predictor",),
            project=project,
            life_s=600,
            clock=CLOCK,
            key_id=key_id,
        )

    def service_token(self) -> str:
        return mint_service_token(self._worker, project=PROJECT, on_behalf_of=None, clock=CLOCK)


@dataclass
class FakeGateway(replica_service_pb2_grpc.ReplicaServiceServicer):
    """Sends the desired set to whoever attaches, and keeps every report."""

    desired: replica_pb2.DesiredState = field(
        default_factory=lambda: replica_pb2.DesiredState(
            revision=1, lease=Duration(seconds=LEASE_S)
        )
    )
    reports: list[replica_service_pb2.AttachRequest] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def Attach(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while True:
                self.changed.clear()
                yield self.desired
                await self.changed.wait()
        finally:
            reader.cancel()

    async def _read(self, reports: Any) -> None:
        async for report in reports:
            self.reports.append(report)

    def want(self, *versions: replica_pb2.DesiredVersion) -> None:
        revision = self.desired.revision + 1
        self.desired = replica_pb2.DesiredState(
            revision=revision, versions=versions, lease=self.desired.lease
        )
        self.changed.set()

    def say(self, farewell: replica_pb2.Farewell) -> None:
        """Tell replicas that drain whether they may go."""
        state = replica_pb2.DesiredState()
        state.CopyFrom(self.desired)
        state.farewell = farewell
        self.desired = state
        self.changed.set()

    def state_of(self, version: int) -> str:
        """Return the newest state of a version that was reported, empty before the first."""
        for row in self.reports[-1].versions if self.reports else []:
            if row.version == version:
                return replica_pb2.VersionState.Name(row.state).removeprefix("VERSION_STATE_")
        return ""


class FakeRegistry(
    registry_service_pb2_grpc.RegistryServiceServicer,
    registry_service_pb2_grpc.ArtifactServiceServicer,
):
    """Versions and artifacts from memory."""

    def __init__(self) -> None:
        self.versions: dict[str, model_pb2.ModelVersion] = {}
        self.artifacts: dict[str, bytes] = {}
        self.downloads = 0
        self.chunk_bytes = 100  # many, of a small artifact

    def add(
        self,
        version: int,
        graph: bytes,
        *,
        model: str = "m",
        golden: bytes = b"",
        serving: bytes = b"",
        feature_set: str = "",
        schema_hash: str = "",
        production: bool = False,
    ) -> replica_pb2.DesiredVersion:
        """Store a version; return what makes a replica want it."""
        digest = self.put(graph)
        row = model_pb2.ModelVersion(
            digest=digest, feature_set=feature_set, schema_hash=schema_hash
        )
        for role, document in (("golden_rows", golden), ("serving", serving)):
            if document:
                row.attachments[role] = self.put(document)
        self.versions[f"projects/{PROJECT}/models/{model}/versions/{version}"] = row
        return replica_pb2.DesiredVersion(
            project=PROJECT, model=model, version=version, digest=digest, production=production
        )

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        self.artifacts[digest] = data
        return digest

    async def GetModelVersion(self, request: Any, context: Any) -> model_pb2.ModelVersion:
        if request.name not in self.versions:
            raise NotFound("VERSION_NOT_FOUND", "no such version")
        return self.versions[request.name]

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.downloads += 1
        data = self.artifacts[request.digest]
        for start in range(0, len(data), self.chunk_bytes):
            chunk = data[start : start + self.chunk_bytes]
            yield registry_service_pb2.DownloadArtifactResponse(chunk=chunk)


@dataclass
class FakeFeatures(features_service_pb2_grpc.FeaturesServiceServicer):
    """One vector for everybody."""

    values: list[float] = field(default_factory=lambda: [0.25, -1.5, 2.0])
    requests: list[features_service_pb2.GetOnlineFeaturesRequest] = field(default_factory=list)
    failure: VolaryError | None = None

    async def GetOnlineFeatures(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        width = len(self.values)
        return features_service_pb2.GetOnlineFeaturesResponse(
            values=self.values,
            states=bytes([1] * (width - 1) + [features_service_pb2.VALUE_STATE_DEFAULTED]),
            rows=1,
            feature_names=[f"view.f{i}" for i in range(width)],
            feature_set="set@3",
            schema_hash="hash-3",
            watermark=from_us(WATERMARK_US),
        )


class Peers:
    """The three fakes on one listener, which may go away and come back on its port."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.gateway, self.registry, self.features = FakeGateway(), FakeRegistry(), FakeFeatures()
        self._verifier = Verifier(Jwks(keys.jwks, CLOCK))
        self._port = 0
        self._server: AioServer | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        ruling = Ruling(self._verifier, CallMetrics(CollectorRegistry()), CLOCK)
        self._server = AioServer(
            self._servicers(), ruling, Health(), Address("127.0.0.1", self._port)
        )
        await self._server.start()
        self._port = self._server.address.port

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def _servicers(self) -> list[Servicer]:
        return [
            Servicer(
                replica_service_pb2_grpc.add_ReplicaServiceServicer_to_server,
                self.gateway,
                "volary.gateway.v1.ReplicaService",
            ),
            Servicer(
                registry_service_pb2_grpc.add_RegistryServiceServicer_to_server,
                self.registry,
                "volary.registry.v1.RegistryService",
            ),
            Servicer(
                registry_service_pb2_grpc.add_ArtifactServiceServicer_to_server,
                self.registry,
                "volary.registry.v1.ArtifactService",
            ),
            Servicer(
                features_service_pb2_grpc.add_FeaturesServiceServicer_to_server,
                self.features,
                "volary.features.v1.FeaturesService",
            ),
        ]
