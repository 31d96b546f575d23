"""Real faults: a database connection that dies under a transaction."""

from __future__ import annotations

import asyncpg
from sqlalchemy import text

from volary_kit.database import Database, Transaction

CONNECT_S = 5
GONE_WITHIN_MS = 5_000


async def cut_off(database: Database, transaction: Transaction) -> None:
    """Kill the server process behind a transaction, and return when it is gone."""
    pid = await transaction.scalar(text("SELECT pg_backend_pid()"))
    url = database.url.replace("postgresql+asyncpg", "postgresql", 1)
    connection = await asyncpg.connect(url, timeout=CONNECT_S)
    try:
        await connection.execute("SELECT pg_terminate_backend($1, $2)", pid, GONE_WITHIN_MS)
    finally:
        await connection.close()
