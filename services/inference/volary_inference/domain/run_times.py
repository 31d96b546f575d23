"""How long a run takes, by its number of rows: the clock of batching and admission.

What is refused never runs, so a mean that is too long would refuse for ever: one slow run counts
for little, a size that does not run is thought to be faster as time goes by, and rows never take
longer than as many smaller runs would.
"""

from __future__ import annotations

from dataclasses import dataclass

GAIN = 0.3  # of the moving mean; one that kept to the fast runs would admit too much
MAX_STEP = 4.0  # times the mean: a run that the machine held up counts for no more
LEAST_S = 1e-4  # and for no less than this: a mean of nothing could not grow
FRESH_S = 0.1  # so long a mean stands; then it halves in HALF_LIFE_S, but
HALF_LIFE_S = 0.5
LEAST_HALF_LIFE_S = 2.0  # the fastest run that was ever seen is forgotten more slowly


@dataclass(slots=True)
class _Seen:
    mean_s: float
    least_s: float
    at_s: float

    def expected_s(self, now_s: float) -> float:
        stale_s = now_s - self.at_s - FRESH_S
        if stale_s <= 0:
            return self.mean_s
        mean_s = self.mean_s * 0.5 ** (stale_s / HALF_LIFE_S)
        return max(mean_s, self.least_s * 0.5 ** (stale_s / LEAST_HALF_LIFE_S))

    def add(self, seconds: float, now_s: float) -> None:
        mean_s = self.expected_s(now_s)
        bounded_s = min(seconds, MAX_STEP * max(mean_s, LEAST_S))
        self.mean_s = mean_s + GAIN * (bounded_s - mean_s)
        self.least_s = min(self.least_s, seconds)
        self.at_s = now_s


class RunTimes:
    """Moving means of run time, one for each power of two of rows; `now_s` is monotonic."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def record(self, rows: int, seconds: float, now_s: float) -> None:
        """Learn from one run that ended now."""
        seen = self._seen.get(bucket_of(rows))
        if seen is None:
            self._seen[bucket_of(rows)] = _Seen(seconds, seconds, now_s)
        else:
            seen.add(seconds, now_s)

    def predict_s(self, rows: int, now_s: float) -> float:
        """Return the seconds that a run of so many rows should take; 0 before the first run.

        A size that never ran takes the time of the next larger one that did, and no size takes
        longer than runs of a smaller one would, one after another. What ran a moment ago is no
        guess: that is for sizes that were not seen lately.
        """
        if rows <= 0 or not self._seen:
            return 0.0
        bucket = bucket_of(rows)
        own = self._seen.get(bucket)
        if own is not None and now_s - own.at_s <= FRESH_S:
            return own.mean_s
        found_s: list[float] = []
        larger: tuple[int, float] | None = None
        for known, seen in tuple(self._seen.items()):  # runs are recorded by another thread
            expected_s = seen.expected_s(now_s)
            if known < bucket:
                found_s.append(expected_s * bucket / known)
            elif larger is None or known < larger[0]:
                larger = known, expected_s
        if larger is not None:
            found_s.append(larger[1])
        return min(found_s)


def bucket_of(rows: int) -> int:
    """Return the smallest power of two that holds the rows."""
    return 1 << max(0, rows - 1).bit_length()
