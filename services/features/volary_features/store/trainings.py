"""The catalog of training sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_features.tables import training_sets as t

Row = sa.Row[Any]


async def add(transaction: Transaction, **values: Any) -> None:
    """Add a set; one with the same content is there already."""
    await transaction.execute(insert(t).values(**values).on_conflict_do_nothing())


async def get(transaction: Transaction, project: str, training_set: str) -> Row:
    """Return a set; raise NotFound."""
    query = sa.select(t).where(t.c.project == project, t.c.training_set == training_set)
    row = (await transaction.execute(query)).first()
    if row is None:
        raise NotFound(
            "TRAINING_SET_NOT_FOUND",
            f"training set {training_set} does not exist",
            {"training_set": training_set},
        )
    return row


async def page(transaction: Transaction, project: str, page: Page) -> Sequence[Row]:
    """Return sets, newest first."""
    query = sa.select(t).where(t.c.project == project).order_by(t.c.position.desc())
    if page.after is not None:
        query = query.where(t.c.position < int(page.after))
    return (await transaction.execute(query.limit(page.limit))).all()
