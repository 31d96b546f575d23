"""MLServer, KServe and Triton: installed in environments of their own, started, measured."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from inference import grpc_service_pb2 as pb
from volary_cli.launcher.engines import free_port

from bench.cores import Cores, on_core
from bench.inference import graphs
from bench.inference.measuring import CALLERS, CONNECTIONS, Small, Times
from bench.load.generator import CACHE, BenchError, Generator, Outcome, Target
from bench.report import Goal, Line, say

HERE = Path(__file__).resolve().parent
INFER = "/inference.GRPCInferenceService/ModelInfer"
RUNTIME = ("onnxruntime==1.31.1",)
START_S = 90.0
STOP_S = 20.0


@dataclass(frozen=True)
class Ports:
    """Where a peer listens, on the loopback where it can be told so."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class Peer:
    """One server: what is installed, and how it is started with a folder of its own."""

    name: str
    title: str
    goal: float
    requirements: tuple[str, ...]
    prepare: Callable[[Path, Path, Ports], tuple[list[str], dict[str, str]]]


def _mlserver(python: Path, folder: Path, ports: Ports) -> tuple[list[str], dict[str, str]]:
    shutil.copy(HERE / "mlserver_runtime.py", folder)
    model = {
        "name": "small",
        "implementation": "mlserver_runtime.Small",
        "parameters": {"uri": str(folder / "small.onnx")},
    }
    (folder / "model-settings.json").write_text(json.dumps(model))
    settings = {
        "parallel_workers": 0,
        "debug": False,
        "host": "127.0.0.1",
        "grpc_port": ports.grpc,
        "http_port": ports.http,
        "metrics_port": ports.metrics,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return [str(python.with_name("mlserver")), "start", str(folder)], {"PYTHONPATH": str(folder)}


def _kserve(python: Path, folder: Path, ports: Ports) -> tuple[list[str], dict[str, str]]:
    program = str(HERE / "kserve_server.py")
    graph = str(folder / "small.onnx")
    return [str(python), program, graph, str(ports.grpc), str(ports.http)], {}


CONFIG = """
name: "small"
backend: "python"
max_batch_size: 64
dynamic_batching {}
instance_group [{ kind: KIND_CPU, count: 1 }]
input [{ name: "features", data_type: TYPE_FP32, dims: [32] }]
output [{ name: "logits", data_type: TYPE_FP32, dims: [2] }]
"""


def _triton(python: Path, folder: Path, ports: Ports) -> tuple[list[str], dict[str, str]]:
    """Lay the bundled server's parts out as it looks for them."""
    site = next(python.parents[1].glob("lib/python3*/site-packages"))
    bundled = site / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.copytree(bundled / "backends" / "python", backend)
    stub = bundled / "python_backend_stubs" / site.parent.name.removeprefix("python")
    shutil.copy(stub / "triton_python_backend_stub", backend)
    version = folder / "models" / "small" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    shutil.copy(HERE / "triton_model.py", version / "model.py")
    shutil.copy(folder / "small.onnx", version)
    server = next((bundled / "bin").glob("tritonserver"))
    words = [
        str(server), "--model-repository", str(folder / "models"),
        "--backend-directory", str(folder / "backends"), "--allow-gpu-metrics", "false",
        "--allow-http", "false", "--allow-metrics", "false",
        "--grpc-address", "127.0.0.1", "--grpc-port", str(ports.grpc),
    ]  # fmt: skip
    return words, {
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PYTHONPATH": str(site),
        "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
    }


PEERS = (
    Peer("triton", "Triton (Python backend)", 5.0, ("nvidia-pytriton==0.7.0",), _triton),
    Peer("mlserver", "MLServer 1.7.1", 25.0, ("mlserver==1.7.1",), _mlserver),
    Peer("kserve", "KServe 0.21", 25.0, ("kserve==0.21.0",), _kserve),
)


def line_of(peer: Peer) -> str:
    """Return the name of a peer's line."""
    return f"small_c64_vs_{peer.name}"


async def lines(
    generator: Generator,
    folder: Path,
    cores: Cores,
    ours: Outcome,
    times: Times,
    is_due: Callable[[str], bool],
) -> AsyncIterator[Line]:
    """Yield a line for each peer that is due and can be had here; why another cannot is said."""
    for peer in PEERS:
        if not is_due(line_of(peer)):
            continue
        try:
            python = await asyncio.to_thread(_environment, peer)
            theirs = await _measured(peer, python, generator, folder, cores, times)
        except BenchError as problem:
            say(f"{peer.title} is not measured: {problem}")
            continue
        say(
            f"{peer.title}: one caller {theirs.one.p50_us} us, {CALLERS} callers "
            f"p99 {theirs.many.p99_us / 1e3:.3g} ms, {theirs.cpu_us:.0f} us of CPU a call"
        )
        yield Line(
            line_of(peer), ours.ok_per_s, "calls/s", Goal(">=", peer.goal),
            theirs.many.ok_per_s, peer.title,
        )  # fmt: skip


def _environment(peer: Peer) -> Path:
    """Return the Python of a peer's environment, made when it is first needed."""
    wanted = (*peer.requirements, *RUNTIME)
    key = hashlib.sha256(" ".join((*wanted, sys.version)).encode()).hexdigest()[:12]
    home = CACHE / "peers" / f"{peer.name}-{key}"
    python = home / "bin" / "python"
    if (home / "complete").is_file():
        return python
    say(f"installing {peer.title} into {home}")
    uv = shutil.which("uv")
    steps: list[list[str]]
    if uv is None:
        steps = [
            [sys.executable, "-m", "venv", str(home)],
            [str(python), "-m", "pip", "install", "--quiet", *wanted],
        ]
    else:
        steps = [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *wanted],
        ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError((done.stderr.strip().splitlines() or ["it cannot be installed"])[-1])
    (home / "complete").touch()
    return python


async def _measured(
    peer: Peer, python: Path, generator: Generator, folder: Path, cores: Cores, times: Times
) -> Small:
    async with _running(peer, python, folder, cores) as (target, pid):
        say(peer.title)
        one = await generator.run(target, seconds=times.load_s, warmup=times.warmup_s)
        await generator.run(target, seconds=times.warmup_s, warmup=0, concurrency=CALLERS)
        before_s = _cpu_s(pid)
        many = await generator.run(
            target, seconds=times.load_s, warmup=0, concurrency=CALLERS, connections=CONNECTIONS
        )
        spent_s = _cpu_s(pid) - before_s
    if not many.ok:
        raise BenchError(f"it answered no call: {dict(many.codes)}")
    return Small(one, many, spent_s / many.ok * 1e6)


@asynccontextmanager
async def _running(
    peer: Peer, python: Path, folder: Path, cores: Cores
) -> AsyncIterator[tuple[Target, int]]:
    """Run a peer on the server's core; yield where to call it and its process id."""
    mine = folder / peer.name
    mine.mkdir()
    (mine / "small.onnx").write_bytes(graphs.perceptron(graphs.SMALL))
    ports = Ports(free_port(), free_port(), free_port())
    words, environment = peer.prepare(python, mine, ports)
    base = {"PATH": os.environ.get("PATH", ""), "HOME": str(mine), "OMP_NUM_THREADS": "1"}
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    log = (mine / "log").open("wb")
    with log, on_core(cores.server):
        child = await asyncio.create_subprocess_exec(
            *words, env=base | quiet | environment, cwd=mine, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    address = f"127.0.0.1:{ports.grpc}"
    try:
        await _until_ready(address, child, mine / "log")
        yield Target(address, INFER, folder / "small.bin", {}), child.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await child.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


async def _until_ready(address: str, child: asyncio.subprocess.Process, log: Path) -> None:
    until_s = time.monotonic() + START_S
    async with grpc.aio.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            request_serializer=pb.ModelReadyRequest.SerializeToString,
            response_deserializer=pb.ModelReadyResponse.FromString,
        )
        while time.monotonic() < until_s and child.returncode is None:
            with suppress(grpc.aio.AioRpcError):
                if (await ask(pb.ModelReadyRequest(name="small"), timeout=2)).ready:
                    return
            await asyncio.sleep(0.2)
    raise BenchError(f"it does not start: {_last_words(log)}")


def _last_words(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of those that it started: Triton's model is one."""
    process = psutil.Process(pid)
    return sum(
        each.cpu_times().user + each.cpu_times().system
        for each in (process, *process.children(recursive=True))
    )
