"""How many calls may be in flight: the next one is refused, not queued without end."""

from __future__ import annotations

import threading

from volary_kit.calls import Call
from volary_kit.errors import ResourceExhausted
from volary_kit.rules.chain import Outcome, Rule

RETRY_AFTER_S = 0.1


class Concurrency(Rule):
    """Count bounded calls and unbounded streams apart, so that neither starves the other."""

    def __init__(self, max_calls: int, max_streams: int) -> None:
        self._lock = threading.Lock()
        self._limits = {False: max_calls, True: max_streams}
        self._running = {False: 0, True: 0}

    def before(self, call: Call) -> None:
        kind = call.policy.unbounded
        with self._lock:
            # counted even when refused: `after` runs for every rule that was entered
            self._running[kind] += 1
            is_full = self._running[kind] > self._limits[kind]
        if is_full:
            raise ResourceExhausted(
                "TOO_MANY_STREAMS" if kind else "TOO_MANY_CALLS",
                f"{self._limits[kind]} calls are in flight, which is the limit",
                {"limit": str(self._limits[kind])},
                retry_after_s=RETRY_AFTER_S,
            )

    def after(self, call: Call, outcome: Outcome) -> None:  # noqa: ARG002
        with self._lock:
            self._running[call.policy.unbounded] -= 1
