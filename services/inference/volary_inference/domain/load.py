"""What a replica tells Envoy of the load of one version, in the text form of ORCA.

Envoy divides the calls by calls a second over `application_utilization`. Reported as utilization
is how many calls the version holds at a time: by Little's law (J. D. C. Little 1961) that is
calls a second times their mean time, so calls go by the inverse of the time that they take here,
whatever it is that slows them: a queue, a neighbour on the machine, a slower core.
"""

from __future__ import annotations

import math

PERIOD_US = 500_000
# of the mean. Weights answer to what they cause: a short memory would make them swing
MEMORY_US = 8_000_000


class RecentLoad:
    """Moving means of a version's calls a second and calls at a time; not safe for threads."""

    def __init__(self) -> None:
        self._began_us: int | None = None
        self._count = 0
        self._seconds = 0.0
        self._calls_per_s = 0.0
        self._in_flight = 0.0
        self.report = ""  # empty until a first period is over

    def add(self, seconds: float, now_us: int) -> None:
        """Note one answered call and how long it took; the report changes twice a second."""
        if self._began_us is None or now_us < self._began_us:  # the wall clock may go back
            self._began_us, self._count, self._seconds = now_us, 0, 0.0
        self._count += 1
        self._seconds += seconds
        if now_us - self._began_us >= PERIOD_US:
            self._close(now_us - self._began_us)
            self._began_us, self._count, self._seconds = now_us, 0, 0.0

    def _close(self, took_us: int) -> None:
        share = 1.0 - math.exp(-took_us / MEMORY_US) if self.report else 1.0
        took_s = took_us / 1e6
        self._calls_per_s += share * (self._count / took_s - self._calls_per_s)
        self._in_flight += share * (self._seconds / took_s - self._in_flight)
        self.report = (
            f"TEXT application_utilization={self._in_flight:.4g},"
            f"rps_fractional={self._calls_per_s:.4g}"
        )
