"""A clock that moves only when told to."""

from __future__ import annotations

from datetime import UTC, datetime

MICROS = 1_000_000
START_US = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * MICROS


class ManualClock:
    """Stand still until `advance` or `set_us`; wall clock and monotonic clock move together."""

    def __init__(self, now_us: int = START_US) -> None:
        self._now_us = now_us
        self._monotonic_us = 0

    def now_us(self) -> int:
        """Return UTC microseconds since the epoch."""
        return self._now_us

    def monotonic_s(self) -> float:
        """Return seconds since the clock was made."""
        return self._monotonic_us / MICROS

    def advance(self, seconds: float) -> None:
        """Move both clocks on."""
        self._now_us += round(seconds * MICROS)
        self._monotonic_us += round(seconds * MICROS)

    def set_us(self, now_us: int) -> None:
        """Set the wall clock, as an operator might; the monotonic clock stays."""
        self._now_us = now_us
