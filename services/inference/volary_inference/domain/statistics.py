"""Counts and durations of one version since it was loaded."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from volary_inference.domain.batching import Closing
from volary_inference.domain.load import RecentLoad


@dataclass(slots=True)
class Total:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.seconds += seconds

    def __add__(self, other: Total) -> Total:
        return Total(self.count + other.count, self.seconds + other.seconds)

    def copy(self) -> Total:
        """Return the same numbers, which no longer change."""
        return Total(self.count, self.seconds)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The statistics of one instant.

    `recent_queue_s` is the moving mean of the time that calls wait for a batch.
    """

    success: Total
    failure: Total
    queue: Total
    run: Total
    rows: int
    last_us: int
    by_batch_size: dict[int, Total]
    closings: dict[str, int]
    dropped: dict[str, int]
    recent_queue_s: float = 0.0
    tiers: dict[str, int] = field(default_factory=dict)  # answers that the model did not give


def added(one: Snapshot, other: Snapshot) -> Snapshot:
    """Return the counters of two engines of one version together."""
    sizes = {
        size: one.by_batch_size.get(size, Total()) + other.by_batch_size.get(size, Total())
        for size in one.by_batch_size.keys() | other.by_batch_size.keys()
    }
    return Snapshot(
        success=one.success + other.success,
        failure=one.failure + other.failure,
        queue=one.queue + other.queue,
        run=one.run + other.run,
        rows=one.rows + other.rows,
        last_us=max(one.last_us, other.last_us),
        by_batch_size=sizes,
        closings=dict(Counter(one.closings) + Counter(other.closings)),
        dropped=dict(Counter(one.dropped) + Counter(other.dropped)),
        recent_queue_s=max(one.recent_queue_s, other.recent_queue_s),
        tiers=dict(Counter(one.tiers) + Counter(other.tiers)),
    )


@dataclass
class Statistics:
    """Counters of a version, written by callers' threads and by its batching thread."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _success: Total = field(default_factory=Total)
    _failure: Total = field(default_factory=Total)
    _queue: Total = field(default_factory=Total)
    _run: Total = field(default_factory=Total)
    _rows: int = 0
    _last_us: int = 0
    _by_batch_size: dict[int, Total] = field(default_factory=dict)
    _closings: Counter[str] = field(default_factory=Counter)
    _dropped: Counter[str] = field(default_factory=Counter)
    _recent_queue_s: float = 0.0
    _tiers: Counter[str] = field(default_factory=Counter)
    _load: RecentLoad = field(default_factory=RecentLoad)

    def ran(self, rows: int, seconds: float, closing: Closing) -> None:
        """Note one run of the batching thread."""
        with self._lock:
            self._run.add(seconds)
            self._rows += rows
            self._by_batch_size.setdefault(rows, Total()).add(seconds)
            self._closings[closing.value] += 1

    def dropped(self, reason: str) -> None:
        """Note a call that never ran."""
        with self._lock:
            self._dropped[reason] += 1

    def answered(self, elapsed_s: float, queue_s: float, now_us: int) -> None:
        """Note a call that was answered."""
        with self._lock:
            self._success.add(elapsed_s)
            self._queue.add(queue_s)
            self._recent_queue_s += 0.05 * (queue_s - self._recent_queue_s)
            self._last_us = now_us
            self._load.add(elapsed_s, now_us)

    @property
    def load(self) -> str:
        """The version's load as Envoy reads it, empty until there is one."""
        return self._load.report

    def failed(self, elapsed_s: float) -> None:
        """Note a call that was not."""
        with self._lock:
            self._failure.add(elapsed_s)

    def fell_back(self, tier: str) -> None:
        """Note an answer that the model did not give."""
        with self._lock:
            self._tiers[tier] += 1

    def snapshot(self) -> Snapshot:
        """Return the counters as they are now."""
        with self._lock:
            return Snapshot(
                success=self._success.copy(),
                failure=self._failure.copy(),
                queue=self._queue.copy(),
                run=self._run.copy(),
                rows=self._rows,
                last_us=self._last_us,
                by_batch_size={size: each.copy() for size, each in self._by_batch_size.items()},
                closings=dict(self._closings),
                dropped=dict(self._dropped),
                recent_queue_s=self._recent_queue_s,
                tiers=dict(self._tiers),
            )
