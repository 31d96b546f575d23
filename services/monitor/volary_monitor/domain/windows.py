"""Tumbling windows of event time, in UTC microseconds."""

from __future__ import annotations

from collections.abc import Iterable
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


def closed(starts_us: Iterable[int], seen_us: int, length_us: int, lateness_us: int) -> list[Span]:
    """Return the windows that have closed, oldest first, of those that begin at `starts_us`.

    `seen_us` is how far event time has come.
    """
    spans = [Span(start_us, start_us + length_us) for start_us in sorted(starts_us)]
    return [span for span in spans if span.end_us + lateness_us <= seen_us]
