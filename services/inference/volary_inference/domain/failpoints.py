"""Faults that are injected on purpose into a share of a version's calls."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from volary_inference.domain.predictions import VersionKey

INTERNAL = 13


@dataclass(frozen=True, slots=True)
class Failpoint:
    """A fault; `version` 0 is every version, `fail_code` a gRPC status code."""

    id: str
    project: str
    model: str
    version: int = 0
    fail_share: float = 0.0
    fail_code: int = INTERNAL
    slow_share: float = 0.0
    delay_s: float = 0.0

    def hits(self, key: VersionKey) -> bool:
        """Say whether a version is meant."""
        is_version = self.version in (0, key.version)
        return is_version and (self.project, self.model) == (key.project, key.model)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call: a delay, and the status code of a failure, 0 for none."""

    delay_s: float = 0.0
    code: int = 0


NO_FAULT = Fault()


class Failpoints:
    """The armed faults, by id."""

    def __init__(self, draw: random.Random | None = None) -> None:
        self._lock = threading.Lock()
        self._armed: dict[str, Failpoint] = {}
        self._draw = draw or random.Random()  # noqa: S311 - chooses calls, guards nothing
        self._changed: Callable[[], None] = lambda: None

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change, in the thread that made it."""
        self._changed = changed

    def hits(self, key: VersionKey) -> bool:
        """Say whether a fault is armed for a version."""
        return any(failpoint.hits(key) for failpoint in self._armed.values())

    def arm(self, failpoint: Failpoint) -> None:
        """Add a fault; it replaces one of the same id."""
        with self._lock:
            self._armed = {**self._armed, failpoint.id: failpoint}
        self._changed()

    def disarm(self, failpoint_id: str) -> int:
        """Remove a fault, or all when the id is empty; return how many were there."""
        with self._lock:
            before = len(self._armed)
            kept = {k: v for k, v in self._armed.items() if failpoint_id and k != failpoint_id}
            self._armed = kept
        self._changed()
        return before - len(kept)

    def fault_of(self, key: VersionKey) -> Fault:
        """Draw what happens to one call of a version."""
        armed = self._armed
        if not armed:
            return NO_FAULT
        delay_s, code = 0.0, 0
        for failpoint in armed.values():
            if not failpoint.hits(key):
                continue
            if self._draw.random() < failpoint.slow_share:
                delay_s = max(delay_s, failpoint.delay_s)
            if self._draw.random() < failpoint.fail_share:
                code = failpoint.fail_code or INTERNAL
        return Fault(delay_s, code)
