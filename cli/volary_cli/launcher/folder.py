"""The data folder of a mesh: its lock, its secrets, its logs, what it says of itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volary_cli.launcher.errors import MeshRunsError

TAIL_LINES = 15
LOG_BYTES = 16 << 20  # a longer log begins anew at the next start


class MeshFolder:
    """Paths below one data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys = root / "keys"
        self.logs = root / "logs"
        self.jwks = root / "jwks.json"
        self.revocations = root / "revoked.json"
        self.api_key_file = root / "api_key"
        self.envoy_credential = root / "keys" / "envoy-credential.yaml"

    def engine(self, name: str) -> Path:
        """Return the folder of an engine's data."""
        return self.root / "engines" / name

    def service(self, name: str) -> Path:
        """Return the folder of a service's own data."""
        return self.root / "services" / name

    def log(self, name: str) -> Path:
        """Return the log file of a component."""
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Create what every component needs."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.keys, self.logs):
            folder.mkdir(exist_ok=True, mode=0o700)

    def turn_log(self, name: str) -> Path:
        """Return the log file of a component, the old one moved away when it is long."""
        log = self.log(name)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        return log

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder; the kernel lets go of it when this process dies, however it dies.

        Raises MeshRunsError when another process holds it.
        """
        self.make()
        with (self.root / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MeshRunsError(f"a mesh runs in {self.root} already") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def holder(self) -> int | None:
        """Return the process id of the supervisor, None when nothing holds the folder."""
        try:
            with (self.root / "lock").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0)
        except FileNotFoundError:
            return None
        return None

    def secret(self, name: str) -> str:
        """Return a password, made on first use: letters and digits, 192 bits."""
        known = self._secrets()
        if name not in known:
            known[name] = secrets.token_hex(24)
            self.write_private(self.root / "secrets.json", json.dumps(known, indent=1))
        return known[name]

    def known_secret(self, name: str) -> str | None:
        """Return a password that was made before."""
        return self._secrets().get(name)

    def _secrets(self) -> dict[str, str]:
        with contextlib.suppress(FileNotFoundError):
            known: dict[str, str] = json.loads((self.root / "secrets.json").read_text())
            return known
        return {}

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace what the mesh says of itself."""
        self.write_private(self.root / "state.json", json.dumps(state, indent=1))

    def read_state(self) -> dict[str, Any] | None:
        """Return what the mesh last said of itself."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            state: dict[str, Any] = json.loads((self.root / "state.json").read_text())
            return state
        return None

    def api_key(self) -> str | None:
        """Return the development key of an earlier start."""
        with contextlib.suppress(FileNotFoundError):
            return self.api_key_file.read_text().strip() or None
        return None

    @staticmethod
    def write_private(path: Path, text: str) -> None:
        """Replace a file at once, readable by its owner alone."""
        half = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        half.replace(path)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log file."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-lines:])
