"""What part of a call's time its predicted wait may take, learned from what became of calls.

A queue as long as deadlines allow answers those at its end too late as soon as an estimate was a
little wrong, and has run them for nothing. So it is kept shorter, and shorter still when calls come
too late nevertheless. The native engine does the same (`engine/src/share.rs`).
"""

from __future__ import annotations

MOST = 0.6  # runs are no fuller for a longer queue
LEAST = 0.2  # of what comes too late whatever is done, others shall not suffer
# 0.3 p 0.6 = 0.002 (1 - p): at rest one call in ninety comes too late
LATE, IN_TIME = 0.3, 0.002


class Share:
    """A share between `LEAST` and `MOST`."""

    __slots__ = ("_share",)

    def __init__(self) -> None:
        self._share = MOST

    def of(self, seconds: float) -> float:
        """Return what of a call's time may go into waiting."""
        return seconds * self._share

    def saw(self, in_time: int, late: int) -> None:
        """Learn what became of calls that were taken, all of one run."""
        if not late and self._share == MOST:
            return
        part = late / (in_time + late)
        share = self._share * (1 - LATE * part) + IN_TIME * (1 - part)
        self._share = min(MOST, max(LEAST, share))
