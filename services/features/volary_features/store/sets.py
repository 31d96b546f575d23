"""Versions of feature sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_features.tables import feature_sets as t

Row = sa.Row[Any]


async def newest(transaction: Transaction, project: str, feature_set: str) -> Row | None:
    """Return the newest version of a set."""
    query = sa.select(t).where(t.c.project == project, t.c.feature_set == feature_set)
    return (await transaction.execute(query.order_by(t.c.version.desc()).limit(1))).first()


async def get(transaction: Transaction, project: str, feature_set: str, version: int = 0) -> Row:
    """Return a version of a set, 0 the newest; raise NotFound."""
    if version == 0:
        row = await newest(transaction, project, feature_set)
    else:
        query = sa.select(t).where(
            t.c.project == project, t.c.feature_set == feature_set, t.c.version == version
        )
        row = (await transaction.execute(query)).first()
    if row is None:
        wanted = f"{feature_set}@{version}" if version else feature_set
        raise NotFound(
            "FEATURE_SET_NOT_FOUND",
            f"feature set {wanted} does not exist",
            {"feature_set": wanted},
        )
    return row


async def page(transaction: Transaction, project: str, page: Page) -> Sequence[Row]:
    """Return the newest versions of sets in order of name."""
    newer = t.alias()
    has_newer = sa.exists().where(
        newer.c.project == t.c.project,
        newer.c.feature_set == t.c.feature_set,
        newer.c.version > t.c.version,
    )
    query = sa.select(t).where(t.c.project == project, ~has_newer).order_by(t.c.feature_set)
    if page.after is not None:
        query = query.where(t.c.feature_set > str(page.after))
    return (await transaction.execute(query.limit(page.limit))).all()


async def add(transaction: Transaction, **values: Any) -> Row | None:
    """Add a version; None when another writer took the number."""
    statement = insert(t).values(**values).on_conflict_do_nothing().returning(t)
    return (await transaction.execute(statement)).first()
