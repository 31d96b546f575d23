"""A thread that others depend on says so before it waits, so that another takes its place."""

from __future__ import annotations

import threading
from collections.abc import Callable


class _Told(threading.local):
    call: Callable[[], None] | None = None


_told = _Told()


def about_to_wait() -> None:
    """Say that this thread may wait now; on most threads nobody cares, and nothing happens.

    A handler that the polling thread answers calls this before it waits for anything that takes
    longer than a call: for a batch, for another service, for a disk.
    """
    call = _told.call
    if call is not None:
        _told.call = None
        call()


def before_waiting(call: Callable[[], None] | None) -> None:
    """Be called, once, when this thread is about to wait; None: no more."""
    _told.call = call
