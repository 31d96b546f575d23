"""Gateway as a process of its own, a real Envoy, and replicas that attach."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from volary.gateway.v1 import (
    evidence_service_pb2,
    evidence_service_pb2_grpc,
    identity_service_pb2_grpc,
    replica_pb2,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2,
    traffic_service_pb2_grpc,
)
from volary_kit.clock import SystemClock
from volary_kit.identity import KEY_ISSUER, SigningKey, mint_api_key, mint_service_token, write_jwks

from tests.unit.gateway.rig import Backend, EnvoyProcess, free_port, until

DIGEST = "sha256:" + "ab" * 32


@dataclass
class Replica:
    """A backend that attaches to gateway and has ready whatever it is told to hold."""

    mesh: Mesh
    backend: Backend
    id: str
    refuses: set[int] = field(default_factory=set)
    desired: replica_pb2.DesiredState = field(default_factory=replica_pb2.DesiredState)

    async def attach(self) -> None:
        """Report for as long as the task lives; attach again when the stream breaks."""
        while True:
            try:
                await self._attach_once()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.05)

    async def _attach_once(self) -> None:
        # what it holds outlives the stream: a gateway that comes back hears of it at once
        desired, told = self.desired, asyncio.Event()
        await self.mesh.direct("inference").channel_ready()
        stub = replica_service_pb2_grpc.ReplicaServiceStub(self.mesh.direct("inference"))
        stream = stub.Attach(metadata=self.mesh.as_service("inference"))

        async def listen() -> None:
            async for state in stream:
                desired.CopyFrom(state)
                told.set()

        listening = asyncio.create_task(listen())
        try:
            versions: list[replica_pb2.LoadedVersion] | None = None
            while not listening.done():
                told.clear()
                report, before = self._report(desired), versions
                versions = list(report.versions)
                if desired.takes_unchanged and versions == before:
                    report.ClearField("versions")
                    report.versions_unchanged = True
                await stream.write(report)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await told.wait()
            await listening
        finally:
            listening.cancel()

    def _report(self, desired: replica_pb2.DesiredState) -> replica_service_pb2.AttachRequest:
        def state(version: int) -> replica_pb2.VersionState:
            if version in self.refuses:
                return replica_pb2.VERSION_STATE_FAILED
            return replica_pb2.VERSION_STATE_READY

        return replica_service_pb2.AttachRequest(
            replica_id=self.id,
            address=self.backend.address,
            incarnation="one",
            revision=desired.revision,
            versions=[
                replica_pb2.LoadedVersion(
                    project=v.project, model=v.model, version=v.version, digest=v.digest,
                    state=state(v.version),
                )
                for v in desired.versions
            ],
        )  # fmt: skip


@dataclass
class Mesh:
    """Gateway and Envoy as processes, and what is needed to talk to both."""

    folder: Path
    database_url: str
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    edge_port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    advertised_port: int = 0
    fallback_port: int = field(default_factory=free_port)
    model: str = "flights"  # each test has a model of its own
    redis_url: str = ""

    def __post_init__(self) -> None:
        self.keys = {
            name: SigningKey.generate(name) for name in ("gateway", "inference", "workflows")
        }
        self.issuing = SigningKey.generate("gateway-issuing")
        self.keys["gateway"].write(self.folder / "gateway.pem")
        self.issuing.write(self.folder / "issuing.pem")
        public = [key.public_jwk() for key in self.keys.values()]
        write_jwks(self.folder / "jwks.json", [*public, self.issuing.public_jwk(KEY_ISSUER)])
        self.envoy = EnvoyProcess(
            self.folder, self.admin_port, self.port, self.folder / "credential.json"
        )
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._left: list[grpc.aio.Channel] = []

    def start_gateway(self) -> None:
        settings = {
            "PORT": self.port,
            "METRICS_PORT": self.metrics_port,
            "DATABASE_URL": self.database_url,
            "JWKS_FILE": self.folder / "jwks.json",
            "REVOCATIONS_FILE": self.folder / "revoked.json",
            "SERVICE_KEY_FILE": self.folder / "gateway.pem",
            "ISSUING_KEY_FILE": self.folder / "issuing.pem",
            "ADVERTISED_ADDRESS": f"127.0.0.1:{self.advertised_port or self.port}",
            "FALLBACK_PORT": self.fallback_port,
            "ENVOY_LISTEN": f"127.0.0.1:{self.edge_port}",
            "ENVOY_ADMIN": f"127.0.0.1:{self.admin_port}",
            "ENVOY_CREDENTIAL_FILE": self.folder / "credential.json",
        }
        if self.redis_url:
            settings["REDIS_URL"] = self.redis_url
        env = {f"VOLARY_GATEWAY_{key}": str(value) for key, value in settings.items()}
        self.log = self.folder / "gateway.log"
        self.gateway = subprocess.Popen(
            [sys.executable, "-m", "volary_gateway"],
            env=os.environ | env,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def kill_gateway(self) -> None:
        """Kill it, and forget the channels to it: one may not have noticed when it is used next."""
        self.gateway.kill()
        self.gateway.wait()
        self._left += [c for n, c in self._channels.items() if not n.startswith("edge")]
        self._channels = {n: c for n, c in self._channels.items() if n.startswith("edge")}

    def direct(self, name: str) -> grpc.aio.Channel:
        """Return a channel to gateway itself."""
        if name not in self._channels:
            self._channels[name] = grpc.aio.insecure_channel(
                f"127.0.0.1:{self.port}",
                options=[
                    ("grpc.max_reconnect_backoff_ms", 100),
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.use_local_subchannel_pool", 1),
                ],
            )
        return self._channels[name]

    def edge(self) -> grpc.aio.Channel:
        """Return a channel to Envoy."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.edge_port}", options=options)
        self._channels[f"edge{len(self._channels)}"] = channel
        return channel

    def as_service(self, name: str = "workflows") -> tuple[tuple[str, str], ...]:
        token = mint_service_token(
            self.keys[name], project="default", on_behalf_of=None, clock=SystemClock()
        )
        return (("x-api-key", token),)

    def api_key(self, *roles: str) -> tuple[tuple[str, str], ...]:
        token = mint_api_key(
            self.issuing, "tester", roles or ["predictor"], life_s=600, clock=SystemClock()
        )
        return (("x-api-key", token),)

    @property
    def name(self) -> str:
        """The resource name of the model."""
        return f"projects/default/models/{self.model}"

    @property
    def traffic(self) -> traffic_service_pb2_grpc.TrafficServiceStub:
        return traffic_service_pb2_grpc.TrafficServiceStub(self.direct("test"))

    @property
    def replicas(self) -> replica_service_pb2_grpc.ReplicaServiceStub:
        return replica_service_pb2_grpc.ReplicaServiceStub(self.direct("test"))

    @property
    def identity(self) -> identity_service_pb2_grpc.IdentityServiceStub:
        return identity_service_pb2_grpc.IdentityServiceStub(self.direct("test"))

    async def load(self, *versions: int) -> None:
        """Load versions and wait until every replica has them."""
        for version in versions:
            name = f"{self.name}/versions/{version}"
            request = replica_service_pb2.LoadVersionRequest(name=name, digest=DIGEST)
            await self.replicas.LoadVersion(request, metadata=self.as_service(), timeout=5)
            ready = await self.replicas.GetVersionReadiness(
                replica_service_pb2.GetVersionReadinessRequest(name=name, wait_for_ready=True),
                metadata=self.as_service(),
                timeout=10,
            )
            assert ready.ready_replicas == ready.attached_replicas > 0, ready

    async def set(self, expected: int, *weights: tuple[int, int], **more) -> traffic_pb2.Traffic:
        request = traffic_service_pb2.SetTrafficRequest(
            name=f"{self.name}/traffic",
            expected_generation=expected,
            weights=[traffic_pb2.Weight(version=v, weight=w) for v, w in weights],
            **more,
        )
        return await self.traffic.SetTraffic(request, metadata=self.as_service(), timeout=10)

    async def get(self) -> traffic_pb2.Traffic:
        request = traffic_service_pb2.GetTrafficRequest(name=f"{self.name}/traffic")
        return await self.traffic.GetTraffic(
            request, metadata=self.as_service(), timeout=20, wait_for_ready=True
        )

    async def evidence(self, rollout: str = ""):
        stub = evidence_service_pb2_grpc.EvidenceServiceStub(self.direct("test"))
        request = evidence_service_pb2.GetEvidenceRequest(model=self.name, rollout=rollout)
        return await stub.GetEvidence(request, metadata=self.as_service(), timeout=5)

    async def until_lossless(self, rollout: str = "") -> None:
        """Wait until Envoy's counters say that nothing is missing."""
        end = asyncio.get_running_loop().time() + 15
        while not (await self.evidence(rollout)).complete:
            assert asyncio.get_running_loop().time() < end, await self.evidence(rollout)
            await asyncio.sleep(0.1)

    async def counted(self, rollout: str, attempts: int):
        """Wait until so many attempts are counted; Envoy sends its records every 0.1 s."""
        end = asyncio.get_running_loop().time() + 15
        while True:
            evidence = await self.evidence(rollout)
            found = sum(o.count for variant in evidence.variants for o in variant.outcomes)
            if found >= attempts and evidence.complete:
                return evidence
            assert asyncio.get_running_loop().time() < end, evidence
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        for channel in (*self._channels.values(), *self._left):
            await channel.close()


@asynccontextmanager
async def mesh(
    folder: Path, database_url: str, backends: list[Backend], redis_url: str = ""
) -> AsyncIterator[Mesh]:
    """Run gateway and Envoy with a replica for each backend."""
    running = Mesh(folder, database_url, redis_url=redis_url)
    running.start_gateway()
    tasks = []
    try:
        await until(lambda: (folder / "credential.json").exists() or _died(running), 60)
        running.envoy.start()
        for index, backend in enumerate(backends):
            replica = Replica(running, backend, f"replica-{index}")
            tasks.append(asyncio.create_task(replica.attach()))
        yield running
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        running.envoy.kill()
        running.kill_gateway()
        await running.close()


def _died(running: Mesh) -> bool:
    if running.gateway.poll() is None:
        return False
    raise AssertionError(running.log.read_text())
