"""Tumbling windows of event time, in UTC microseconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Span:
    """A window from `start_us`, inclusive, to `end_us`, exclusive."""

    start_us: int
    end_us: int


def window_of(event_us: int, length_us: int) -> Span:
    """Return the window that an instant lies in; windows begin at multiples since the epoch."""
    start_us = event_us // length_us * length_us
    return Span(start_us, start_us + length_us)


def closed(
    after_us: int | None, first_us: int, seen_us: int, length_us: int, lateness_us: int
) -> Iterator[Span]:
    """Yield windows that closed and were not judged yet, oldest first.

    `after_us` is the end of the last judged window, None if there is none; `first_us` the
    earliest event; `seen_us` how far event time has come.
    """
    span = window_of(first_us, length_us) if after_us is None else window_of(after_us, length_us)
    while span.end_us + lateness_us <= seen_us:
        yield span
        span = Span(span.end_us, span.end_us + length_us)
