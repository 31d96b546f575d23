"""Time as a dependency: wall-clock microseconds and monotonic seconds."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tell the time; code takes one instead of asking the operating system."""

    def now_us(self) -> int:
        """Return UTC microseconds since the epoch."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never go back, for deadlines and durations."""
        ...


class SystemClock:
    """The operating system's clocks."""

    def now_us(self) -> int:
        """Return UTC microseconds since the epoch."""
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()
