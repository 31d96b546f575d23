"""Operating-system processes that never outlive their parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# the last replica of a version waits 12 s for another one, and lets its calls finish for 10 s
KILL_AFTER_S = 25.0

# loaded before any fork: a child between fork and exec must not take the loader's lock
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Command:
    """What is run: words, environment on top of the parent's, folder and user.

    `orphan_signal` is what the kernel sends when the parent dies without a farewell.
    """

    argv: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL


def inherited_environment() -> dict[str, str]:
    """Return the parent's environment without what only the launcher may read."""
    launcher_only = {
        "VOLARY_POSTGRES_URL",
        "VOLARY_REDIS_URL",
        "VOLARY_TEMPORAL_ADDRESS",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    }
    return {key: value for key, value in os.environ.items() if key not in launcher_only}


def _before_exec(command: Command, parent: int) -> Callable[[], None]:
    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(command.orphan_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    return prepare


async def spawn(command: Command, log: Path) -> Child:
    """Start a command in a process group of its own, its output appended to a log file."""
    account = pwd.getpwnam(command.user) if command.user else None
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            cwd=command.folder,
            env=inherited_environment() | dict(command.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            preexec_fn=_before_exec(command, os.getpid()),
        )
    return Child(command, process)


class Child:
    """A running command: wait for it, stop it with everything that it started."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process) -> None:
        self._command = command
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit status; negative is the signal that ended it, None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end and sweep up what is left of the process group."""
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return code

    async def stop(self, kill_after_s: float = KILL_AFTER_S) -> int:
        """Ask it to end, kill the whole group when it has not done so in time."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self._command.stop_signal)
        try:
            async with asyncio.timeout(kill_after_s):
                return await self.wait()
        except TimeoutError:
            self._signal_group(signal.SIGKILL)
            return await self.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
