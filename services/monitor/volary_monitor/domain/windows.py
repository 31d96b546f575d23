"""Tumbling windows of event time, in UTC microseconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_EMPTY = 64


@dataclass(frozen=True, order=True)
class Span:
    """A window from `start_us`, inclusive, to `end_us`, exclusive."""

    start_us: int
    end_us: int


def window_of(event_us: int, length_us: int) -> Span:
    """Return the window that an instant lies in; windows begin at multiples since the epoch."""
    start_us = event_us // length_us * length_us
    return Span(start_us, start_us + length_us)


def closed(starts_us: Iterable[int], reach_us: int, length_us: int) -> list[Span]:
    """Return the windows that have closed, oldest first, of those that begin at `starts_us`.

    `reach_us` is how far event time has come, less what a late event is waited for.
    """
    spans = [Span(start_us, start_us + length_us) for start_us in sorted(starts_us)]
    return [span for span in spans if span.end_us <= reach_us]


def empty(
    starts_us: Iterable[int], after_us: int | None, until_us: int, length_us: int
) -> list[Span]:
    """Return the windows that ended by `until_us` and are none of those that begin at `starts_us`.

    They are those since `after_us`, else since the first start; the newest `MAX_EMPTY` of them,
    so that one event of another century costs little.
    """
    known = set(starts_us)
    first_us = min(known, default=until_us) if after_us is None else after_us
    # a policy whose windows changed their length begins with the next whole one
    first = -(-first_us // length_us)
    last = until_us // length_us
    numbers = range(max(first, last - MAX_EMPTY), last)
    spans = [Span(number * length_us, (number + 1) * length_us) for number in numbers]
    return [span for span in spans if span.start_us not in known]
