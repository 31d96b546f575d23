"""The first load of an artifact happens in a child process with little memory and little time.

What loops, grabs memory or crashes there takes nothing with it here. The child is forked by a
worker that has nothing of this process; it loads the graph, runs the golden rows and every batch
size, and says how it went. The verdict is kept on disk: an artifact is tried once.
"""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import dataclass

from volary_kit.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    VolaryError,
)

from volary_inference.lifecycle.crashes import Crashes
from volary_inference.lifecycle.package import Package
from volary_inference.lifecycle.trial_worker import TrialWorker
from volary_inference.lifecycle.verdicts import Verdict, Verdicts

ERRORS: dict[str, type[VolaryError]] = {
    "InvalidArgument": InvalidArgument,
    "FailedPrecondition": FailedPrecondition,
    "ResourceExhausted": FailedPrecondition,  # more memory will not come by waiting
}


@dataclass(frozen=True)
class Limits:
    """What a trial may take: bytes of memory of its own, and seconds."""

    memory_bytes: int
    timeout_s: float


class Trials:
    """Tries artifacts that were never loaded here before."""

    def __init__(
        self,
        crashes: Crashes,
        verdicts: Verdicts,
        limits: Limits,
        max_rows: int,
        worker: TrialWorker | None = None,
    ) -> None:
        self._crashes = crashes
        self._verdicts = verdicts
        self._worker = worker or TrialWorker()
        self._limits = limits
        self._max_rows = max_rows

    async def require(self, package: Package) -> Verdict:
        """Return what was found once an artifact has been loaded well, now or before.

        Raises FailedPrecondition `QUARANTINED`; Aborted `TRIAL_CRASHED` or `TRIAL_TIMED_OUT`
        when it may be tried again; and what the load itself raises.
        """
        digest = package.description.digest
        self.refuse_quarantined(digest)
        crashes = self._crashes.count(digest)
        verdict = await asyncio.to_thread(self._verdicts.find, package, crashes)
        if verdict is not None:
            return verdict
        try:
            code, said = await self._run(package)
        except TimeoutError:
            raise self._counted(digest, "TRIAL_TIMED_OUT", "its first load did not end") from None
        verdict = self._judged(digest, code, said)
        await asyncio.to_thread(self._verdicts.keep, package, verdict, crashes)
        return verdict

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def forgive(self, digest: str) -> None:
        """Let an artifact try anew: somebody asked for it by name."""
        self._crashes.forgive(digest)

    def refuse_quarantined(self, digest: str) -> None:
        """Raise FailedPrecondition `QUARANTINED` for what crashed too often."""
        if self._crashes.is_quarantined(digest):
            raise FailedPrecondition(
                "QUARANTINED", "it took its process down too often; load it again by name to retry"
            )

    def _judged(self, digest: str, code: int, said: bytes) -> Verdict:
        try:
            word = json.loads(said) if code == 0 else {}
            if "error" not in word:
                return Verdict.from_document(word)
            error = ERRORS[word["error"]](str(word["reason"]), str(word["message"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            text = f"its first load ended with {_ending(code)}"
            raise self._counted(digest, "TRIAL_CRASHED", text) from None
        raise error

    def _counted(self, digest: str, reason: str, text: str) -> VolaryError:
        """Count a crash; return what to raise for it, `QUARANTINED` for the last one."""
        self._crashes.add(digest)
        self.refuse_quarantined(digest)
        return Aborted(reason, text)

    async def _run(self, package: Package) -> tuple[int, bytes]:
        order = {
            "memory_bytes": self._limits.memory_bytes,
            "cpu_s": max(1, round(self._limits.timeout_s)),
            "max_rows": self._max_rows,
            "golden": package.golden,
        }
        given = json.dumps(order).encode() + b"\n" + package.graph
        return await self._worker.run(given, self._limits.timeout_s)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
