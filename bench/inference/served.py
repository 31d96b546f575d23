"""The real service as a process on a core of its own, with stand-ins for those that it talks to.

Everything is on: credentials, deadlines, tracing to a collector, metrics, prediction events to a
real Redis, provenance. Gateway and registry are the stand-ins of the service's own tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import psutil
from inference import grpc_service_pb2 as pb
from volary_cli.launcher.engines import RedisEngine, free_port, running
from volary_inference.settings import InferenceSettings
from volary_kit.testing import eventually

from bench.cores import Cores, on_core
from bench.inference import graphs
from bench.load.generator import BenchError, Target
from tests.unit.inference.peers import Keys, Peers
from tests.unit.inference.replica import Replica

INFER = "/inference.GRPCInferenceService/ModelInfer"
EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"
START_S, LOAD_S = 120.0, 60.0
CHUNK_BYTES = 1 << 20  # as the registry sends artifacts
TOKEN = np.array([17.0, 18.0, 19.0, 20.0], np.float32)  # found in the body again, to be replaced
SETTING = "engine"
DROPPED = "volary_prediction_events_dropped_total"
NATIVE, PYTHON = "native", "python"


def engines() -> list[str]:
    """Return the engines that this build of the service may run, the better one first."""
    return [NATIVE, PYTHON] if SETTING in InferenceSettings.model_fields else [PYTHON]


class EngineReplica(Replica):
    """A replica that runs one engine, sends its spans to a collector and speaks HTTP, too."""

    rest_port = metrics_port = 0

    def choose(self, engine: str, collector: str) -> None:
        """Set what differs from a replica under test."""
        self.rest_port, self.metrics_port = free_port(), free_port()
        self._environment["VOLARY_INFERENCE_METRICS_PORT"] = str(self.metrics_port)
        self._environment["VOLARY_INFERENCE_REST_PORT"] = str(self.rest_port)
        self._environment["VOLARY_INFERENCE_OTLP_ENDPOINT"] = collector
        if SETTING in InferenceSettings.model_fields:
            self._environment["VOLARY_INFERENCE_ENGINE"] = engine


@dataclass(frozen=True)
class Served:
    """A running service and what to send to it."""

    engine: str
    peers: Peers
    replica: EngineReplica
    folder: Path
    core: int

    @property
    def pid(self) -> int:
        """The process of the service."""
        assert self.replica.process is not None
        return self.replica.process.pid

    @property
    def rest_port(self) -> int:
        """Where the service speaks V2 over HTTP."""
        return self.replica.rest_port

    def target(self, model: str) -> Target:
        """Return a target whose body asks one model for one row."""
        return Target(
            f"127.0.0.1:{self.replica.port}",
            INFER,
            self.folder / f"{model}.bin",
            {"x-api-key": self.peers.keys.api_key()},
        )

    async def started(self) -> None:
        """Wait until the service is ready, on the server's core; raise BenchError if it is not."""
        try:
            async with asyncio.timeout(START_S):
                await self.replica.ready()
        except (AssertionError, TimeoutError) as error:
            raise BenchError(f"the {self.engine} engine does not start: {error}") from error
        for thread in psutil.Process(self.pid).threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, {self.core})

    def pause(self) -> None:
        """Take no time of the core while another service is measured."""
        os.kill(self.pid, signal.SIGSTOP)

    async def resume(self) -> None:
        """Go on, and be ready."""
        os.kill(self.pid, signal.SIGCONT)
        await self.started()

    async def until_ready(self, version: int) -> None:
        """Wait until the newest report says that every model's version is ready."""

        async def is_ready() -> bool:
            return self.peers.gateway.state_of(version) == "READY"

        await eventually(is_ready, within_s=LOAD_S, what=f"version {version}")

    async def until_applied(self) -> None:
        """Wait until the service says that it has what gateway wants now."""
        wanted = self.peers.gateway.desired.revision

        async def is_applied() -> bool:
            return self.peers.gateway.reports[-1].revision >= wanted

        await eventually(is_applied, within_s=LOAD_S, what=f"revision {wanted}")

    async def events_dropped(self) -> int:
        """Return how many prediction events found no room, by the service's own metrics."""
        return int(await asyncio.to_thread(_metric, self.replica.metrics_port, DROPPED))


def write_bodies(folder: Path) -> dict[str, int]:
    """Write a request for each model; return where the token of `copy` lies."""
    widths = {"small": graphs.SMALL[0], "swapped": graphs.SMALL[0], "heavy": graphs.HEAVY[0]}
    for model, width in widths.items():
        row = np.linspace(-1, 1, width, dtype=np.float32)
        (folder / f"{model}.bin").write_bytes(body(model, row))
    data = body("copy", TOKEN)
    (folder / "copy.bin").write_bytes(data)
    return {"copy": data.index(TOKEN.tobytes())}


def body(model: str, row: np.ndarray) -> bytes:
    """Return a request for one row as bytes."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="features", datatype="FP32", shape=[1, row.size])
    request.raw_input_contents.append(row.tobytes())
    return request.SerializeToString()


@asynccontextmanager
async def served(
    engine: str, folder: Path, cores: Cores, *, starts_on: int | None = None
) -> AsyncIterator[Served]:
    """Run the service with the models of the bench; it is there once it has `started`.

    It starts on the server's core, or on another, so that two services start beside each other.
    """
    mine = folder / engine
    mine.mkdir()
    redis = RedisEngine(mine / "redis", free_port(), "bench")
    peers = Peers(Keys(mine))
    peers.registry.chunk_bytes = CHUNK_BYTES
    async with running(redis, mine / "redis.log"), _collector() as collector:
        await peers.start()
        peers.gateway.want(
            peers.registry.add(1, graphs.perceptron(graphs.SMALL), model="small", production=True),
            peers.registry.add(1, graphs.perceptron(graphs.HEAVY), model="heavy", production=True),
            peers.registry.add(1, graphs.copy(), model="copy", production=True),
        )
        replica = EngineReplica(mine, peers.keys, peers, redis.url)
        replica.choose(engine, collector)
        try:
            with on_core(cores.server if starts_on is None else starts_on):
                replica.start()
            yield Served(engine, peers, replica, folder, cores.server)
        finally:
            replica.close()
            await peers.stop()


@asynccontextmanager
async def _collector() -> AsyncIterator[str]:
    """Take spans and throw them away: what they cost the service is under test, not this."""

    async def export(_data: bytes, _context: object) -> bytes:
        return b""

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(EXPORT, {"Export": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def echo(folder: Path, cores: Cores) -> AsyncIterator[tuple[Target, int]]:
    """Run the reference server; yield where to call it and its process id."""
    port = free_port()
    with on_core(cores.server):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.inference.echo", str(port)
        )
    target = Target(f"127.0.0.1:{port}", INFER, folder / "small.bin", {})
    try:
        async with grpc.aio.insecure_channel(target.address) as channel:
            async with asyncio.timeout(START_S):
                await channel.channel_ready()
        yield target, child.pid
    except TimeoutError as error:
        raise BenchError("the reference server does not start") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _metric(port: int, name: str) -> float:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        rows = reply.read().decode().splitlines()
    values = [float(row.split()[-1]) for row in rows if row.split("{")[0].split(" ")[0] == name]
    if not values:
        raise BenchError(f"the service has no metric {name}")
    return sum(values)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
