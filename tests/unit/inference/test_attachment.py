"""What a replica reports of itself to gateway."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from volary_inference.domain.statistics import Statistics
from volary_inference.lifecycle.attachment import QUIET_US, queue_s

NOW_US = 1_000_000_000


def version(statistics: Statistics | None) -> Any:
    return SimpleNamespace(serving=statistics)


def test_queue_time_is_the_longest_of_those_that_are_asked() -> None:
    short, long = Statistics(), Statistics()
    for _ in range(200):
        short.answered(0.01, 0.002, NOW_US)
        long.answered(0.1, 0.05, NOW_US - QUIET_US + 1)
    assert abs(queue_s([version(short), version(long), version(None)], NOW_US) - 0.05) < 0.001


def test_nobody_waits_where_nobody_calls_any_more() -> None:
    statistics = Statistics()
    for _ in range(200):
        statistics.answered(0.1, 0.05, NOW_US)
    assert queue_s([version(statistics)], NOW_US + QUIET_US - 1) > 0.04
    assert queue_s([version(statistics)], NOW_US + QUIET_US) == 0
    assert queue_s([], NOW_US) == 0
