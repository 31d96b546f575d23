"""Windows, ties, time to live and the two clocks: the one place that offline and online share.

Every record has two instants, both in UTC microseconds: `event_time`, when it happened, and
`known_at`, when it could first be known. A read is asked for an instant t and

- sees a record only if `known_at < t`: what becomes known at exactly t is not known at t;
- sums a window of length w and hop h over `floor(t - w, h) <= known_at < t`: the sawtooth
  window of Chronon, whose tail moves in whole hops so that tiles of h can fill it;
- takes a latest value only if `event_time >= t - ttl`: the last instant of a life counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Instants = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
FIRST_US, LAST_US = -(1 << 62), 1 << 62  # before and after every instant that a record can have


@dataclass(frozen=True, order=True)
class Window:
    """A sawtooth window: `length_us` long, its tail on multiples of `hop_us`."""

    length_us: int
    hop_us: int

    def opens(self, asked_us: Instants) -> Instants:
        """Return the first instant inside the window of each read."""
        return (asked_us - self.length_us) // self.hop_us * self.hop_us

    def opens_at(self, asked_us: int) -> int:
        """Return the first instant inside the window of one read."""
        return (asked_us - self.length_us) // self.hop_us * self.hop_us


def default_hop_us(length_us: int) -> int:
    """Return the hop of a window that declares none: 5 minutes, 1 hour or 1 day (Chronon)."""
    if length_us < 12 * HOUR_US:
        return 5 * MINUTE_US
    return HOUR_US if length_us < 12 * DAY_US else DAY_US


def is_known(known_us: Instants, asked_us: Instants) -> Mask:
    """Say which records are known at the instants asked for."""
    return known_us < asked_us


def is_alive(event_us: Instants, asked_us: Instants, ttl_us: int | None) -> Mask:
    """Say which records still stand at the instants asked for; without a ttl all do."""
    if ttl_us is None:
        return np.ones(len(event_us), dtype=np.bool_)
    return event_us >= asked_us - ttl_us


def oldest_asked_us(watermark_us: int, history_us: int) -> int:
    """Return the oldest instant that the online state answers for."""
    return watermark_us - history_us


def is_expired(last_us: int, oldest_us: int, reach_us: int) -> bool:
    """Say whether nothing up to `last_us` can matter to a read at `oldest_us` or later."""
    return last_us < oldest_us - reach_us


@dataclass(frozen=True)
class Ladder:
    """The resolutions in which a view keeps its past, by the windows that read it.

    Past the oldest instant that may be asked for, no read can cut a tile at its right end; at
    its left end only the tails of windows can, on multiples of their hops. So a stretch is
    kept in the finest hop among the windows whose tail may still reach it, and is dropped
    behind the last tail. Hops divide each other, so tiles of one stretch nest.
    """

    windows: tuple[Window, ...]

    @property
    def reach_us(self) -> int:
        """How far behind the asked instant the longest window can look."""
        return max(window.length_us + window.hop_us for window in self.windows)

    def tiles(self, at_us: Instants, oldest_us: int) -> tuple[Instants, Mask, Mask]:
        """Return where each cell goes: its tile's start, whether it moves, whether it is kept."""
        coarsest = max(window.hop_us for window in self.windows)
        starts, hops = at_us.copy(), np.zeros(len(at_us), dtype=np.int64)
        oldest = np.array([oldest_us], dtype=np.int64)
        for window in sorted(self.windows, key=lambda window: -window.hop_us):
            # aligned to the coarsest hop, so that no tile lies across the border
            border = int(window.opens(oldest)[0]) // coarsest * coarsest
            hops[at_us >= border] = window.hop_us
        is_kept = hops > 0
        np.floor_divide(at_us, hops, out=starts, where=is_kept)
        np.multiply(starts, hops, out=starts, where=is_kept)
        is_moved = is_kept & (starts + hops <= oldest_us)
        return np.where(is_moved, starts, at_us), is_moved, is_kept


def nesting_fault(windows: Sequence[Window]) -> str | None:
    """Return what keeps tiles of these windows from nesting, None when they do."""
    hops = sorted({window.hop_us for window in windows})
    for finer, coarser in pairwise(hops):
        if coarser % finer:
            return f"hop {coarser} us is no multiple of hop {finer} us"
    too_long = [window for window in windows if window.hop_us > window.length_us]
    return f"hop {too_long[0].hop_us} us is longer than its window" if too_long else None
