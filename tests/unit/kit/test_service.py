"""The life of a process: how it refuses to start, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from volary_cli.launcher.engines import free_port
from volary_kit.client import connect_aio
from volary_kit.errors import Unavailable
from volary_kit.supervision import Supervisor
from volary_kit.testing import eventually

SCRIPT = """
import asyncio
from contextlib import asynccontextmanager
from volary_kit.service import Service, run
from volary_kit.settings import ServiceSettings

class BirdSettings(ServiceSettings, service="birds"):
    pass

@asynccontextmanager
async def build(kit):
    server = kit.aio_server([], port=kit.settings.port)
    try:
        yield Service(listeners=[server])
    finally:
        print("closed", flush=True)

run("birds", BirdSettings, build)
"""
START_S = 60.0  # on a machine that is busy with other tests


@asynccontextmanager
async def birds(tmp_path: Path, **settings: object) -> Any:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VOLARY_")}
    own = {f"VOLARY_BIRDS_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SCRIPT,
        env=clean | own,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ended(process: Any) -> tuple[int, str, str]:
    async with asyncio.timeout(START_S):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize(
    ("settings", "code", "text"),
    [
        ({"prot": 1}, 2, "VOLARY_BIRDS_PROT"),
        ({"port": "many"}, 2, "VOLARY_BIRDS_PORT"),
        ({"host": "0.0.0.0"}, 1, "beyond loopback"),
        ({"service_key_file": "nowhere.pem"}, 2, "nowhere.pem"),
        ({"peer_ca_file": "nowhere.crt"}, 2, "PEER_CA_FILE"),
    ],
)
async def test_a_start_that_must_not_be_is_refused_by_name(
    tmp_path: Path, settings: dict[str, object], code: int, text: str
) -> None:
    async with birds(tmp_path, **settings) as process:
        found, _, errors = await ended(process)
    assert (found, text in errors) == (code, True), errors
    assert "Traceback" not in errors


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for use in ("port", "metrics_port"):
        async with birds(tmp_path, **{use: port}) as process:
            found, _, errors = await ended(process)
        assert (found, str(port) in errors) == (1, True), errors
    server.close()


async def test_sigterm_drains_and_exits_0(tmp_path: Path) -> None:
    port, metrics_port = free_port(), free_port()
    settings = {"port": port, "metrics_port": metrics_port, "drain_delay_s": 0.1}
    async with (
        birds(tmp_path, **settings) as process,
        connect_aio(f"127.0.0.1:{port}") as channel,
    ):
        await eventually(lambda: is_ready(channel), within_s=START_S, what="readiness")
        url = f"http://127.0.0.1:{metrics_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())
        assert b"volary_rpc_finished_total" in page
        process.send_signal(signal.SIGTERM)
        code, output, errors = await ended(process)
    assert code == 0, errors
    assert "closed" in output
    assert "Traceback" not in errors


async def is_ready(channel: Any) -> bool:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
    except Unavailable:
        return False
    return reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_background_work_that_fails_starts_again() -> None:
    began: list[str] = []
    enough = asyncio.Event()

    async def fails() -> None:
        began.append("fails")
        if len(began) == 2:
            enough.set()
        raise ConnectionError("away")

    async def ends() -> None:
        began.append("ends")

    async with asyncio.timeout(10), Supervisor([ends]):
        await asyncio.sleep(0)
    assert began == ["ends"]
    began.clear()
    async with asyncio.timeout(10), Supervisor([fails]):
        await enough.wait()
    assert began == ["fails", "fails"]


FORK = """
import os, sys, time
import volary_kit
import grpc
from concurrent.futures import ThreadPoolExecutor

server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:0")
server.start()
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
os._exit(0)
"""


def test_a_fork_runs_none_of_grpcs_handlers() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        env=environment | {"GRPC_VERBOSITY": "info"},
        capture_output=True,
        text=True,
        check=True,
        timeout=START_S,
    )
    assert "fork() handlers" not in done.stderr
