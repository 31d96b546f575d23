"""Prediction events on their way out: a bounded ring that never makes a reply wait."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from volary_inference.domain.decisions import Decision
from volary_inference.domain.predictions import About, Origin, VersionKey


@dataclass(slots=True)  # not frozen: one is made a call
class PredictionRecord:
    """One answered call, as the prediction log will have it; `code` 0 is OK."""

    id: str
    key: VersionKey
    digest: str
    tier: str
    origin: Origin
    about: About
    event_time_us: int
    replied_at_us: int
    features: tuple[float, ...] = ()
    outputs: tuple[float, ...] = ()
    confidence: float | None = None
    latency_us: int = 0
    queue_us: int = 0
    batch_size: int = 0
    code: int = 0
    decision: Decision | None = None


class EventRing:
    """At most `capacity` records; when it is full the new one is dropped and counted."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._records: deque[PredictionRecord] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._records)

    @property
    def dropped(self) -> int:
        """Records that found the ring full."""
        return self._dropped

    @property
    def is_closed(self) -> bool:
        """True once no record comes any more."""
        return self._is_closed

    def add_dropped(self, count: int) -> None:
        """Count records that another engine had no room for."""
        with self._changed:
            self._dropped += count

    def offer(self, record: PredictionRecord) -> bool:
        """Add a record without ever waiting; say whether there was room."""
        with self._changed:
            if self._is_closed or len(self._records) >= self._capacity:
                self._dropped += 1
                return False
            self._records.append(record)
            if len(self._records) == 1:
                self._changed.notify()
            return True

    def peek(self, limit: int, timeout_s: float) -> list[PredictionRecord]:
        """Return the oldest records without removing them; wait for the first one."""
        with self._changed:
            if not self._records and not self._is_closed:
                self._changed.wait(timeout_s)
            return [self._records[i] for i in range(min(limit, len(self._records)))]

    def discard(self, count: int) -> None:
        """Remove the oldest records, which were delivered."""
        with self._changed:
            for _ in range(count):
                self._records.popleft()

    def close(self) -> None:
        """Take no more; wake who waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
