"""A small file that another process replaces, read again when it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from volary_kit.clock import Clock

RELOAD_S = 1.0


class WatchedFile:
    """Hand a file's text to `take` when it is new.

    It is looked at no more often than every `RELOAD_S`; what is missing, or what `take` refuses
    with ValueError, leaves everything as it was.
    """

    def __init__(self, path: Path, clock: Clock, take: Callable[[str], None]) -> None:
        self._path = path
        self._clock = clock
        self._take = take
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._next_look_s: float | None = None

    def refresh(self) -> None:
        """Look at the file again when it is time to."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._next_look_s is not None and now_s < self._next_look_s:
                return
            self._next_look_s = now_s + RELOAD_S
            try:
                stat = self._path.stat()
                seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
                if seen == self._seen:
                    return
                self._take(self._path.read_text())
            except (OSError, ValueError):
                return
            self._seen = seen
