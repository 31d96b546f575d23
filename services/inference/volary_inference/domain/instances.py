"""Several batching threads of one version: runs side by side, on a core each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from volary_inference.domain.batching import Batcher, BatchPolicy, Ticket


class Instances:
    """Gives each call to the batcher that would answer it first; like one to who calls it.

    They share the graph, whose runs need no lock, and what is known of their times.
    """

    def __init__(self, batchers: Sequence[Batcher]) -> None:
        self._batchers = tuple(batchers)
        self._turns = itertools.count()

    @property
    def policy(self) -> BatchPolicy:
        """The limits of each batch."""
        return self._batchers[0].policy

    def run_now(self, ticket: Ticket) -> bool:
        """Run a short ticket in its caller's thread where an instance is free; say whether."""
        return any(batcher.run_now(ticket) for batcher in self._turned())

    def put(self, ticket: Ticket) -> None:
        """Queue a ticket; raise ResourceExhausted when it could not finish in time anywhere."""
        min(self._turned(), key=lambda each: each.predicted_s(ticket)).put(ticket)

    def _turned(self) -> tuple[Batcher, ...]:
        """Return the batchers, beginning with another one each time: equal ones take turns."""
        first = next(self._turns) % len(self._batchers)
        return self._batchers[first:] + self._batchers[:first]

    def close(self, timeout_s: float | None = None) -> bool:
        """Take no more, answer what is queued; say whether all was answered in time."""
        answered = [batcher.close(timeout_s) for batcher in self._batchers]
        return all(answered)
