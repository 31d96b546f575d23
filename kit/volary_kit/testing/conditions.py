"""Waiting on a condition with a deadline, in place of sleeping and hoping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.01


async def eventually(
    condition: Callable[[], Awaitable[T]],
    *,
    within_s: float = 10.0,
    what: str = "the condition",
) -> T:
    """Return the first truthy answer of `condition`; raise AssertionError after `within_s`."""
    deadline_s = asyncio.get_running_loop().time() + within_s
    while True:
        if found := await condition():
            return found
        if asyncio.get_running_loop().time() > deadline_s:
            raise AssertionError(f"{what} did not come true within {within_s} s")
        await asyncio.sleep(POLL_S)
