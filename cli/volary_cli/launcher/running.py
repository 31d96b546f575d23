"""The life of a mesh: hold the folder, start everything, tell how it is, stop everything."""

from __future__ import annotations

import asyncio
import errno
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from typing import Any

from volary_kit.clock import SystemClock

from volary_cli.launcher.errors import DiskFullError
from volary_cli.launcher.mesh import Mesh, Options
from volary_cli.launcher.orphans import end_orphans
from volary_cli.launcher.scaling import Autoscaler, Replicas
from volary_cli.launcher.supervisor import Supervisor

FREE_BYTES = 512 << 20  # a fresh mesh writes 250 MB: WAL, SQLite, append-only file, logs
API_KEY_HEADER = "x-api-key"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Show = Callable[[dict[str, Any]], None]


class Phase(StrEnum):
    """Where a mesh is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class MeshRun:
    """One run of a mesh in this process; `show` gets its state whenever that changes."""

    def __init__(self, options: Options, show: Show) -> None:
        self._folder = options.folder
        self._options = options
        self._show = show
        self._phase = Phase.STARTING
        self._error: str | None = None
        self._mesh: Mesh | None = None
        self._supervisor: Supervisor | None = None

    async def run(self) -> None:
        """Run until told to stop by a signal.

        Raises MeshRunsError, DiskFullError, ConfigurationError, PortTakenError or StartError;
        whatever had started by then is stopped.
        """
        with self._folder.held(), _stop_signals() as stopping:
            self._tell()
            try:
                await self._run(stopping)
            except BaseException as error:
                self._error = str(error)
                self._enter(Phase.FAILED)
                raise
            self._enter(Phase.STOPPED)

    async def _run(self, stopping: asyncio.Event) -> None:
        end_orphans(self._folder.root)
        self._require_space()
        self._mesh = Mesh(self._options)
        await self._mesh.prepare()
        self._supervisor = Supervisor(self._mesh.components(), self._folder.turn_log, self._tell)
        try:
            await self._until_stopped(self._supervisor, stopping)
        finally:
            self._enter(Phase.STOPPING)
            await self._supervisor.stop()
            end_orphans(self._folder.root)

    async def _until_stopped(self, supervisor: Supervisor, stopping: asyncio.Event) -> None:
        starting = asyncio.create_task(supervisor.start())
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                self._enter(Phase.RUNNING)
                async with self._scaled(supervisor):
                    await stop
        finally:
            starting.cancel()
            stop.cancel()

    @asynccontextmanager
    async def _scaled(self, supervisor: Supervisor) -> AsyncIterator[None]:
        """Add and remove replicas as calls wait, where more than the first ones may run."""
        first, most, mesh = self._options.replicas, self._options.max_replicas, self._mesh
        if most <= first or mesh is None:
            yield
            return

        async def add(index: int) -> None:
            await supervisor.add(mesh.replica(index))

        async def remove(index: int) -> None:
            await supervisor.remove(mesh.replica(index).name)

        queues = mesh.queues()
        replicas = Replicas(queues.queue_us, add, remove)
        policy = self._options.settings.scaling(first, most)
        scaler = Autoscaler(policy, replicas, first, SystemClock())
        scaling = asyncio.create_task(scaler.run_always())
        try:
            yield
        finally:
            scaling.cancel()
            await asyncio.gather(scaling, return_exceptions=True)
            await queues.close()

    def _require_space(self) -> None:
        free = shutil.disk_usage(self._folder.root).free
        if free < FREE_BYTES:
            raise DiskFullError(
                f"the disk of {self._folder.root} has {free >> 20} MB left and a mesh needs "
                f"{FREE_BYTES >> 20} MB: make room or choose another --data-dir"
            )

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._tell()

    def _tell(self) -> None:
        state = self.state()
        try:
            self._folder.write_state(state)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # a full disk must not end a mesh that runs
                raise
        self._show(state)

    def state(self) -> dict[str, Any]:
        """Return what is kept in the folder: phase, error, and what `status --json` prints."""
        conditions = self._supervisor.conditions if self._supervisor else {}
        addresses = self._mesh.addresses if self._mesh else {}
        return {
            "phase": self._phase.value,
            "error": self._error,
            "seconds": {name: c.ready_after_s for name, c in conditions.items()},
            "status": {
                "components": [condition.row() for condition in conditions.values()],
                "gateway": addresses.get("gateway"),
                "api_key": self._folder.api_key(),
                "api_key_header": API_KEY_HEADER,
                "temporal": addresses.get("temporal"),
                "temporal_ui": addresses.get("temporal_ui"),
                "postgres": addresses.get("postgres"),
                "redis": addresses.get("redis"),
                "data_dir": str(self._folder.root),
            },
        }


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
