"""The first load of an artifact happens in a child process with little memory and little time.

What loops, grabs memory or crashes there takes nothing with it here. The child gets the graph on
its standard input, loads it, runs the golden rows and every batch size, and says how it went in
one line; it has none of this process's environment, files or sockets.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

from volary_kit.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    VolaryError,
)

from volary_inference.lifecycle.crashes import Crashes
from volary_inference.lifecycle.package import Package

CHILD = "volary_inference.lifecycle.trial_run"
ERRORS: dict[str, type[VolaryError]] = {
    "InvalidArgument": InvalidArgument,
    "FailedPrecondition": FailedPrecondition,
    "ResourceExhausted": FailedPrecondition,  # more memory will not come by waiting
}
WORD = b"\n"


@dataclass(frozen=True)
class Limits:
    """What a trial may take: bytes of memory of its own, and seconds."""

    memory_bytes: int
    timeout_s: float


class Trials:
    """Tries artifacts that were never loaded here before."""

    def __init__(self, crashes: Crashes, limits: Limits, max_rows: int) -> None:
        self._crashes = crashes
        self._limits = limits
        self._max_rows = max_rows

    async def require(self, package: Package) -> None:
        """Return once an artifact has been loaded well, now or before.

        Raises FailedPrecondition `QUARANTINED`; Aborted `TRIAL_CRASHED` or `TRIAL_TIMED_OUT`
        when it may be tried again; and what the load itself raises.
        """
        digest = package.description.digest
        self.refuse_quarantined(digest)
        if self._crashes.is_tried(digest):
            return
        try:
            code, said = await self._run(package)
        except TimeoutError:
            self._count(digest, "TRIAL_TIMED_OUT", "its first load did not end")
        else:
            self._judge(digest, code, said)

    def forgive(self, digest: str) -> None:
        """Let an artifact try anew: somebody asked for it by name."""
        self._crashes.forgive(digest)

    def refuse_quarantined(self, digest: str) -> None:
        """Raise FailedPrecondition `QUARANTINED` for what crashed too often."""
        if self._crashes.is_quarantined(digest):
            raise FailedPrecondition(
                "QUARANTINED", "it took its process down too often; load it again by name to retry"
            )

    def _judge(self, digest: str, code: int, said: bytes) -> None:
        try:
            word = json.loads(said.rpartition(WORD)[2] or said)
        except ValueError:
            word = None
        if code == 0 and word == {}:
            self._crashes.passed(digest)
            return
        if not isinstance(word, dict) or word.get("error") not in ERRORS:
            self._count(digest, "TRIAL_CRASHED", f"its first load ended with {_ending(code)}")
            return
        raise ERRORS[word["error"]](str(word["reason"]), str(word["message"]))

    def _count(self, digest: str, reason: str, text: str) -> None:
        self._crashes.add(digest)
        self.refuse_quarantined(digest)
        raise Aborted(reason, text)

    async def _run(self, package: Package) -> tuple[int, bytes]:
        order = {
            "memory_bytes": self._limits.memory_bytes,
            "cpu_s": max(1, round(self._limits.timeout_s)),
            "max_rows": self._max_rows,
            "golden": package.golden,
        }
        given = json.dumps(order).encode() + WORD + package.graph
        child = _child()  # a few milliseconds; a cancellation cannot come between it and the kill
        try:
            said, _ = await asyncio.to_thread(child.communicate, given, self._limits.timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return child.returncode, said.rstrip()


def _child() -> subprocess.Popen[bytes]:
    # Python's own Popen starts it by vfork: the event loop's would fork, and gRPC's fork handlers
    # do not work in a process whose other threads serve calls
    return subprocess.Popen(
        [sys.executable, "-m", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", ""), "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
