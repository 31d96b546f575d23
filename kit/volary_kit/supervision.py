"""Background work that outlives its failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

FIRST_S = 0.2
LONGEST_S = 10.0
HEALTHY_S = 30.0  # work that ran this long starts again without a longer wait
log = logging.getLogger(__name__)
Work = Callable[[], Awaitable[None]]


class Supervisor:
    """Run coroutine functions until the block ends; restart each that fails, with back-off."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(supervised(work)) for work in self._works]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def supervised(work: Work) -> None:
    """Run one piece of work; it ends when it returns, and starts again when it raises."""
    name = getattr(work, "__qualname__", repr(work))
    loop = asyncio.get_running_loop()
    wait_s = FIRST_S
    while True:
        began_s = loop.time()
        try:
            await work()
        except Exception:  # the supervisor: whatever failed, it starts again
            log.exception("background work %s failed", name)
        else:
            return
        if loop.time() - began_s > HEALTHY_S:
            wait_s = FIRST_S
        await asyncio.sleep(wait_s)
        wait_s = min(LONGEST_S, wait_s * 2)
