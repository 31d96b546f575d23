"""The right to be the one gateway of a database, as a lock that Postgres gives to a session.

A second process waits for it without listening. When the first one dies, its session ends and
the next one loads the same state: the same snapshot, by its hash. A process that is frozen
lets its session time out; once it thaws it finds that out and leaves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
from volary_kit.errors import Unavailable

log = logging.getLogger(__name__)
KEY = 0x766F_6C61_7279  # "volary"; a lock is of one database
LOOK_S = 1.0
# of silence, until Postgres ends the session of a frozen process; several looks long
SILENCE_S = 5.0
GONE = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Leadership:
    """Hold the lock for as long as the session lives."""

    def __init__(self, url: str, connection: asyncpg.Connection, lost: Callable[[], None]) -> None:
        self._url = url
        self._connection = connection
        self._lost = lost

    async def watch_always(self) -> None:
        """Ask for a sign of life; leave when somebody else leads.

        While Postgres is away nobody can lead, and what is known goes on being served.
        """
        while True:
            try:
                await self._connection.execute("SELECT 1", timeout=SILENCE_S)
            except GONE:
                if not await self._has_again():
                    log.error("another gateway leads: leaving")  # noqa: TRY400
                    self._lost()
                    return
            await asyncio.sleep(LOOK_S)

    async def _has_again(self) -> bool:
        """Take the lock anew once Postgres answers; False when it stays with somebody else."""
        self._connection.terminate()
        looks = 0  # our own old session may hold it until it times out
        while looks * LOOK_S <= 2 * SILENCE_S:
            try:
                self._connection = await asyncpg.connect(self._url)
                if await _take(self._connection):
                    return True
                self._connection.terminate()
                looks += 1
            except GONE:
                log.warning("the lock of this gateway waits for the database")
            await asyncio.sleep(LOOK_S)
        return False

    def end(self) -> None:
        """Give the lock back."""
        self._connection.terminate()


@asynccontextmanager
async def leading(url: str, lost: Callable[[], None] | None = None) -> AsyncIterator[Leadership]:
    """Wait until this process may lead, and lead for as long as the block lasts.

    Raises Unavailable when Postgres goes away meanwhile.
    """
    url = url.replace("+asyncpg", "", 1)
    try:
        connection = await asyncpg.connect(url)
        if not await _take(connection):
            log.info("another gateway leads: waiting for its place")
            await connection.execute("SELECT pg_advisory_lock($1)", KEY)
            await _take(connection)
    except GONE as error:
        raise Unavailable("DATABASE_UNAVAILABLE", "the database does not answer") from error
    leadership = Leadership(url, connection, lost or leave)
    try:
        yield leadership
    finally:
        leadership.end()


async def _take(connection: asyncpg.Connection) -> bool:
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", KEY):
        return False
    await connection.execute(f"SET idle_session_timeout = {int(SILENCE_S * 1_000)}")
    return True


def leave() -> None:
    """End this process as SIGTERM does: what runs finishes, then somebody starts it again."""
    os.kill(os.getpid(), signal.SIGTERM)
