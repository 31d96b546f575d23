"""The production pointer as a projection of what gateway says serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

WHOLE = 10_000


@dataclass(frozen=True)
class Pointer:
    """Which version is in production, which was before, and since which generation.

    `latest_generation` is the newest event seen; version 0 is none.
    """

    version: int = 0
    previous: int = 0
    since_generation: int = 0
    latest_generation: int = 0


@dataclass(frozen=True)
class Change:
    """One event of gateway: weights of total 10,000 by version."""

    generation: int
    weights: Mapping[int, int]
    production_version: int = 0

    @property
    def production(self) -> int:
        """The version that counts as production; 0 when the event leaves it as it was."""
        if self.production_version:
            return self.production_version
        return next((v for v, weight in self.weights.items() if weight == WHOLE), 0)


def advanced(pointer: Pointer, change: Change) -> Pointer:
    """Return the pointer after a change; one that is not newer moves nothing."""
    if change.generation <= pointer.latest_generation:
        return pointer
    seen = replace(pointer, latest_generation=change.generation)
    if change.production in (0, pointer.version):
        return seen
    return replace(
        seen,
        version=change.production,
        previous=pointer.version,
        since_generation=change.generation,
    )


def deltas(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Return now less before for each metric that both have."""
    return {name: value - before[name] for name, value in now.items() if name in before}
