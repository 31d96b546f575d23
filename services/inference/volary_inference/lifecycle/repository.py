"""An operator's hand on one replica: take a model out of service here, and back.

Gateway's desired set stays the only truth of what a replica holds: nothing is loaded that is not
in it, and what is unloaded is reported as FAILED `UNLOADED`, so that no route points to it here.
It lasts until the model is loaded again, leaves the desired set, or the process starts anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from volary_kit.errors import DeadlineExceeded, FailedPrecondition

from volary_inference.domain.predictions import ModelKey
from volary_inference.domain.versions import State, Versions
from volary_inference.lifecycle.keeper import Keeper


class Repository:
    """Loads and unloads from threads that serve calls; the work is the event loop's."""

    def __init__(self, keeper: Keeper, versions: Versions, loop: asyncio.AbstractEventLoop) -> None:
        self._keeper = keeper
        self._versions = versions
        self._loop = loop

    def load(self, model: ModelKey, timeout_s: float) -> None:
        """Load a model's versions that are not ready, and wait for them.

        Raises NotFound `MODEL_NOT_FOUND`, FailedPrecondition `LOAD_FAILED`, DeadlineExceeded.
        """
        self._versions.of_model(model)
        self._wait(self._keeper.resume(model), timeout_s)
        for version in self._versions.all():
            if version.key.of_model == model and version.state is State.FAILED:
                raise FailedPrecondition(
                    "LOAD_FAILED",
                    f"version {version.key.version}: {version.error}",
                    {"version": str(version.key.version), "reason": version.error_reason},
                )

    def unload(self, model: ModelKey, timeout_s: float) -> None:
        """Answer what is queued for a model and forget its graphs; raise NotFound."""
        self._versions.of_model(model)
        self._wait(self._keeper.hold(model), timeout_s)

    def _wait(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result(timeout_s)
        except TimeoutError:
            # the work goes on: it belongs to the replica, not to this call
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "it takes longer than the call") from None
