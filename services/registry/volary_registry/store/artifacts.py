"""Which artifacts are stored; their bytes lie in the content-addressed folder."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound

from volary_registry.tables import artifacts


async def add(transaction: Transaction, **values: Any) -> None:
    """Say that an artifact is stored; saying it again changes nothing."""
    await transaction.execute(insert(artifacts).values(**values).on_conflict_do_nothing())


async def find(transaction: Transaction, digest: str) -> sa.Row[Any] | None:
    """Return an artifact, None when it is not stored."""
    statement = sa.select(artifacts).where(artifacts.c.digest == digest)
    return (await transaction.execute(statement)).first()


async def get(transaction: Transaction, digest: str) -> sa.Row[Any]:
    """Return an artifact; raise NotFound."""
    row = await find(transaction, digest)
    if row is None:
        raise NotFound("ARTIFACT_NOT_FOUND", f"{digest} is not stored", {"digest": digest})
    return row
