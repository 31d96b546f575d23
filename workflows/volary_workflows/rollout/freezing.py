"""Freeze windows: until when no candidate may be given more calls."""

from __future__ import annotations

from collections.abc import Iterable

from volary_workflows.rollout.messages import FreezeWindow

WEEK_S = 7 * 86_400.0
MONDAY_S = 4 * 86_400.0  # 1970-01-05, the first Monday after the epoch


def frozen_until(windows: Iterable[FreezeWindow], now_s: float) -> float:
    """Return the instant at which the last of the windows that hold now ends, 0 when none does.

    Windows that touch or overlap are one: the end of one is looked up in the others.
    """
    known = list(windows)
    until_s = 0.0
    while True:
        ends = [_end_of(window, max(now_s, until_s)) for window in known]
        latest_s = max(ends, default=0.0)
        if latest_s <= until_s:
            return until_s
        until_s = latest_s
        if until_s - now_s > WEEK_S:
            return until_s  # weekly windows may leave no gap at all: look again then


def _end_of(window: FreezeWindow, now_s: float) -> float:
    """Return when the window that holds the instant ends, 0 when it does not hold it."""
    if not window.weekly:
        return window.end_s if window.start_s <= now_s < window.end_s else 0.0
    length_s = (window.end_s - window.start_s) % WEEK_S
    into_s = (now_s - MONDAY_S - window.start_s) % WEEK_S
    return now_s - into_s + length_s if into_s < length_s else 0.0
