"""Waiting for watermarks: woken when one moves, in this process or another."""

from __future__ import annotations

import asyncio
import logging

from redis.exceptions import RedisError

from volary_features.online.store import OnlineStore

log = logging.getLogger(__name__)

# a message that is lost costs this much and no more
LOOK_AGAIN_S = 0.25
RETRY_S = 0.2


class Watermarks:
    """Counts the moves of watermarks and wakes whoever waits for one."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self._moves = 0
        self._moved = asyncio.Event()

    def move(self) -> None:
        """Wake everybody: a watermark has moved."""
        self._moves += 1
        self._moved.set()
        self._moved = asyncio.Event()

    async def watch(self) -> None:
        """Listen for ever; trouble with Redis is waited out."""
        while True:
            try:
                async with self._store.watching() as moves:
                    async for _ in moves:
                        self.move()
            except (RedisError, OSError) as error:
                log.warning("watermarks cannot be watched: %s", type(error).__name__)
            await asyncio.sleep(RETRY_S)

    def waiting(self, wait_s: float) -> Waiting:
        """Return a wait of at most `wait_s` seconds from now."""
        return Waiting(self, asyncio.get_running_loop().time() + wait_s)

    @property
    def moves(self) -> int:
        """How often a watermark has moved."""
        return self._moves

    async def next(self, within_s: float) -> None:
        """Return at the next move, at the latest after `within_s`."""
        moved = self._moved
        try:
            async with asyncio.timeout(within_s):
                await moved.wait()
        except TimeoutError:
            return


class Waiting:
    """One reader's patience."""

    def __init__(self, watermarks: Watermarks, until_s: float) -> None:
        self._watermarks = watermarks
        self._until_s = until_s

    def ticket(self) -> int:
        """Return where the count of moves stands; take it before reading."""
        return self._watermarks.moves

    async def moved_since(self, ticket: int) -> bool:
        """Wait for a move after `ticket`; True if it is worth to read again, False out of time."""
        left_s = self._until_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            return False
        if self._watermarks.moves == ticket:
            await self._watermarks.next(min(left_s, LOOK_AGAIN_S))
        return True
