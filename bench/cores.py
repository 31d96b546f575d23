"""Who runs on which core: a child has the cores of the thread that starts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class TooFewCores(Exception):
    """The server and the load need a core each."""


@dataclass(frozen=True)
class Cores:
    """The server has one core, everything else the other."""

    server: int
    rest: int

    @classmethod
    def pick(cls) -> Cores:
        """Return two of the cores that this process may use; raise TooFewCores for a single one."""
        found = sorted(os.sched_getaffinity(0))
        if len(found) < 2:
            raise TooFewCores("the server and the load need a core each: there is only one")
        return cls(found[0], found[-1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let what is started in the block run on one core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
