"""How long a run takes, by its number of rows: the clock of batching and admission."""

from __future__ import annotations

GAIN = 0.2  # of the moving mean: half of a lasting change is seen after 3 runs


class RunTimes:
    """Moving means of run time, one for each power of two of rows."""

    def __init__(self) -> None:
        self._means_s: dict[int, float] = {}

    def record(self, rows: int, seconds: float) -> None:
        """Learn from one run."""
        bucket = bucket_of(rows)
        mean_s = self._means_s.get(bucket)
        self._means_s[bucket] = seconds if mean_s is None else mean_s + GAIN * (seconds - mean_s)

    def predict_s(self, rows: int) -> float:
        """Return the seconds that a run of so many rows should take; 0 before the first run.

        A size that never ran takes the time of the next larger one that did; past the largest
        the time grows with the rows.
        """
        if rows <= 0 or not self._means_s:
            return 0.0
        bucket = bucket_of(rows)
        larger = [known for known in self._means_s if known >= bucket]
        if larger:
            return self._means_s[min(larger)]
        largest = max(self._means_s)
        return self._means_s[largest] * bucket / largest


def bucket_of(rows: int) -> int:
    """Return the smallest power of two that holds the rows."""
    return 1 << max(0, rows - 1).bit_length()
