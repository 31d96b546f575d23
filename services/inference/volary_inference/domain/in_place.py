"""Whether a run is short enough for its caller's own thread.

To wake the batching thread and be woken by it costs 50 to 100 us of CPU time; a run that takes
less than that is cheaper where its caller already is.
"""

from __future__ import annotations

from volary_inference.domain.run_times import bucket_of

SHORT_S = 0.00005
TRIAL_S = 0.002  # by the warm-up's one measurement, which anything may have disturbed
TRIALS = 8


class InPlace:
    """The least time that runs of each size took: what disturbed the others is not the graph's."""

    def __init__(self) -> None:
        self._least_s: dict[int, tuple[int, float]] = {}

    def expected_s(self, rows: int) -> float | None:
        """Return the time of a run of so many rows, None before enough of that size ran."""
        tried, least_s = self._least_s.get(bucket_of(rows), (0, 0.0))
        return None if tried < TRIALS else least_s

    def ran(self, rows: int, seconds: float) -> None:
        """Learn from a run in any thread."""
        bucket = bucket_of(rows)
        tried, least_s = self._least_s.get(bucket, (0, seconds))
        self._least_s[bucket] = (tried + 1, min(least_s, seconds))
