"""Freeze windows: until when."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from volary_workflows.rollout.freezing import WEEK_S, frozen_until
from volary_workflows.rollout.messages import FreezeWindow

HOUR_S, DAY_S = 3_600.0, 86_400.0
WEEKEND = FreezeWindow(4 * DAY_S + 18 * HOUR_S, 6 * HOUR_S, weekly=True)  # Fri 18:00 to Mon 06:00


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2026-11-20 17:59:59", None),  # a Friday
        ("2026-11-20 18:00:00", "2026-11-23 06:00:00"),
        ("2026-11-22 12:00:00", "2026-11-23 06:00:00"),
        ("2026-11-23 05:59:59", "2026-11-23 06:00:00"),
        ("2026-11-23 06:00:00", None),
    ],
)
def test_a_weekend_wraps_over_the_week(now, until):
    assert frozen_until([WEEKEND], at(now)) == (at(until) if until else 0.0)


def test_windows_that_touch_are_one():
    monday = FreezeWindow(at("2026-11-23 06:00:00"), at("2026-11-24 00:00:00"))
    assert frozen_until([monday, WEEKEND], at("2026-11-21 00:00:00")) == monday.end_s


def test_windows_without_a_gap_are_looked_at_again_and_hang_nobody():
    halves = [FreezeWindow(0.0, 3 * DAY_S, weekly=True), FreezeWindow(3 * DAY_S, 0.0, weekly=True)]
    now_s = at("2026-11-21 00:00:00")
    assert now_s + WEEK_S <= frozen_until(halves, now_s) < now_s + 3 * WEEK_S


def test_no_window_is_no_freeze():
    assert frozen_until([], 1e9) == 0.0
