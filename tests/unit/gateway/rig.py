"""A real Envoy, small V2 backends and the control plane, in one process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Self

import envoy
import grpc
import volary_contract
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.discovery.v3 import ads_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary_gateway.plane import Plane
from volary_gateway.xds.edge import Edge, edge_methods
from volary_kit.clock import SystemClock
from volary_kit.identity import KEY_ISSUER, SigningKey, mint_api_key

ROOT = Path(__file__).parents[3]
ENVOY = Path(next(iter(envoy.__path__))) / "_bin" / "envoy"
BOOTSTRAP = ROOT / "deploy" / "compose" / "envoy-bootstrap.yaml"
DEADLINE_S = 10.0


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def until(is_true: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fail loudly when it never holds."""
    end = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end:
            raise AssertionError(f"never came true within {timeout_s} s: {is_true}")
        await asyncio.sleep(0.01)


class Load:
    """Callers that never pause, for as long as a block lasts; a failed call fails the block."""

    def __init__(self, call: Callable, callers: int = 4) -> None:
        self.calls = 0
        self._call = call
        self._callers = callers
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._callers)]
        return self

    async def __aexit__(self, *_) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def more(self, calls: int) -> None:
        """Wait until so many further calls are answered."""
        goal = self.calls + calls
        await until(lambda: self.calls >= goal or any(task.done() for task in self._tasks))

    async def _run(self) -> None:
        while not self._is_over:
            await self._call()
            self.calls += 1


@dataclass
class Seen:
    """One call as a backend saw it."""

    method: str
    metadata: dict[str, str]
    time_left_s: float


class Backend(v2_grpc.GRPCInferenceServiceServicer):
    """A V2 server that answers at once and remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self.fail: grpc.StatusCode | None = None
        self.load = ""  # what it reports of its load with each reply
        self.port = free_port()

    def start(self) -> Backend:
        self.server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        )
        v2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, self.server)
        self.server.add_insecure_port(self.address)
        return self

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def ModelInfer(self, request, context):
        await self._note("ModelInfer", context)
        reply = v2.ModelInferResponse(model_name=request.model_name, id=request.id)
        reply.parameters["backend"].string_param = self.name
        return reply

    async def ModelStreamInfer(self, requests, context):
        await self._note("ModelStreamInfer", context)
        async for request in requests:
            reply = v2.ModelStreamInferResponse()
            reply.infer_response.model_name = request.model_name
            reply.infer_response.parameters["backend"].string_param = self.name
            yield reply

    async def ModelReady(self, request, context):
        await self._note("ModelReady", context)
        return v2.ModelReadyResponse(ready=True)

    async def ServerLive(self, request, context):
        await self._note("ServerLive", context)
        return v2.ServerLiveResponse(live=True)

    async def RepositoryIndex(self, request, context):
        await self._note("RepositoryIndex", context)
        return v2.RepositoryIndexResponse()

    async def _note(self, method, context) -> None:
        metadata = {k: v for k, v in context.invocation_metadata() if isinstance(v, str)}
        self.seen.append(Seen(method, metadata, context.time_remaining() or 0.0))
        version = metadata.get("volary-version", "")
        marks = [("volary-version", version), ("volary-tier", "model")]
        if self.load:
            marks.append(("endpoint-load-metrics", self.load))
        context.set_trailing_metadata(tuple(marks))
        if self.fail is not None:
            await context.abort(self.fail, "told to fail")

    def calls(self, method: str = "ModelInfer") -> list[dict[str, str]]:
        return [seen.metadata for seen in self.seen if seen.method == method]


class Control(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """The control plane without a database."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.credentials: set[str] = set()

    async def DeltaAggregatedResources(self, request_iterator, context):
        self.credentials.add(dict(context.invocation_metadata()).get("x-api-key", ""))
        async for response in self.plane.serve(request_iterator):
            yield response


class Logs(als_pb2_grpc.AccessLogServiceServicer):
    """Keeps every record that Envoy sends."""

    def __init__(self) -> None:
        self.records: dict[str, list] = {}

    async def StreamAccessLogs(self, request_iterator, context):
        name = ""
        async for message in request_iterator:
            name = name or message.identifier.log_name
            self.records.setdefault(name, []).extend(message.http_logs.log_entry)
        return als_pb2.StreamAccessLogsResponse()

    def attempts(self) -> list:
        return self.records.get("attempts", [])


@dataclass
class EnvoyProcess:
    """A real Envoy on the project's own bootstrap."""

    folder: Path
    admin_port: int
    control_port: int
    credential: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        text = Template(BOOTSTRAP.read_text()).substitute(
            NODE_ID="envoy-test",
            ADMIN_HOST="127.0.0.1",
            ADMIN_PORT=self.admin_port,
            GATEWAY_HOST="127.0.0.1",
            GATEWAY_PORT=self.control_port,
            CREDENTIAL_FILE=self.credential,
        )
        bootstrap = self.folder / "bootstrap.yaml"
        bootstrap.write_text(text)
        level = os.environ.get("ENVOY_LEVEL", "warning")
        self.log = self.folder / "envoy.log"
        self.process = subprocess.Popen(
            [ENVOY, "-c", bootstrap, "--disable-hot-restart", "--concurrency", "1", "-l", level],
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stats(self, pattern: str) -> dict[str, int]:
        query = urllib.parse.urlencode({"format": "json", "filter": pattern})
        url = f"http://127.0.0.1:{self.admin_port}/stats?{query}"
        with urllib.request.urlopen(url, timeout=2) as reply:
            rows = json.load(reply)["stats"]
        return {row["name"]: row["value"] for row in rows if "name" in row}


@dataclass
class Rig:
    """Everything that a story at the edge needs."""

    folder: Path
    plane: Plane = field(default_factory=Plane)
    logs: Logs = field(default_factory=Logs)
    key: SigningKey = field(default_factory=lambda: SigningKey.generate("gateway-1"))
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)
    services: dict[str, str] = field(default_factory=dict)
    otlp: str = ""
    rest: str = ""

    def __post_init__(self) -> None:
        credential = self.folder / "credential.json"
        secret = {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": "credential",
            "generic_secret": {"secret": {"inline_string": "token-of-gateway"}},
        }
        credential.write_text(json.dumps({"resources": [secret]}))
        self.envoy = EnvoyProcess(self.folder, self.admin_port, self.control_port, credential)

    @property
    def edge(self) -> Edge:
        jwks = {"keys": [self.key.public_jwk(KEY_ISSUER)]}
        return Edge(
            listen=f"127.0.0.1:{self.port}",
            jwks=json.dumps(jwks),
            descriptor_set=volary_contract.descriptor_set(),
            methods=edge_methods(),
            services=self.services,
            otlp=self.otlp,
            rest=self.rest,
        )

    def token(
        self,
        project: str = "default",
        life_s: float = 600,
        key_id: str | None = None,
        principal: str = "tester",
    ) -> str:
        return mint_api_key(
            self.key, principal, ["predictor"],
            project=project, life_s=life_s, clock=SystemClock(), key_id=key_id,
        )  # fmt: skip

    def channel(self) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    async def start_control(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.control = Control(self.plane)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self.control, self.server)
        als_pb2_grpc.add_AccessLogServiceServicer_to_server(self.logs, self.server)
        self.server.add_insecure_port(f"127.0.0.1:{self.control_port}")
        await self.server.start()


@asynccontextmanager
async def rig(folder: Path, **more) -> AsyncIterator[Rig]:
    """Start the control plane and Envoy; stop both."""
    running = Rig(folder, **more)
    await running.start_control()
    running.envoy.start()
    try:
        yield running
    finally:
        running.envoy.kill()
        await running.server.stop(None)


def backends_of(replies) -> Counter:
    return Counter(reply.parameters["backend"].string_param for reply in replies)
