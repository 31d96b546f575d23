"""Versions of feature views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_features.tables import feature_views as t

Row = sa.Row[Any]


_newer = t.alias()
_HAS_NEWER = sa.exists().where(
    _newer.c.project == t.c.project, _newer.c.view == t.c.view, _newer.c.version > t.c.version
)


def _newest(project: str) -> sa.Select[Any]:
    return sa.select(t).where(t.c.project == project, ~_HAS_NEWER).order_by(t.c.view)


async def newest(transaction: Transaction, project: str, view: str) -> Row | None:
    """Return the newest version of a view."""
    found = await transaction.execute(_newest(project).where(t.c.view == view))
    return found.first()


async def get(transaction: Transaction, project: str, view: str) -> Row:
    """Return the newest version of a view; raise NotFound."""
    row = await newest(transaction, project, view)
    if row is None:
        raise NotFound(
            "FEATURE_VIEW_NOT_FOUND", f"feature view {view} does not exist", {"feature_view": view}
        )
    return row


async def page(transaction: Transaction, project: str, page: Page) -> Sequence[Row]:
    """Return the newest versions of views in order of name."""
    query = _newest(project)
    if page.after is not None:
        query = query.where(t.c.view > str(page.after))
    return (await transaction.execute(query.limit(page.limit))).all()


async def add(transaction: Transaction, **values: Any) -> Row | None:
    """Add a version; None when another writer took the number."""
    statement = insert(t).values(**values).on_conflict_do_nothing().returning(t)
    return (await transaction.execute(statement)).first()


async def versions(
    transaction: Transaction, project: str, wanted: Mapping[str, int]
) -> Sequence[Row]:
    """Return these versions of these views."""
    pairs = sa.tuple_(t.c.view, t.c.version).in_(list(wanted.items()))
    return (await transaction.execute(sa.select(t).where(t.c.project == project, pairs))).all()


async def live(transaction: Transaction) -> Sequence[Row]:
    """Return every version that takes events in: those once loaded, and the newest of each."""
    query = sa.select(t).where(t.c.watermark_us.is_not(None) | ~_HAS_NEWER)
    return (await transaction.execute(query)).all()


async def raise_watermark(
    transaction: Transaction, project: str, view: str, version: int, watermark_us: int
) -> None:
    """Note a watermark that a view has reached; an older one changes nothing."""
    await transaction.execute(
        sa.update(t)
        .where(t.c.project == project, t.c.view == view, t.c.version == version)
        .where(t.c.watermark_us.is_(None) | (t.c.watermark_us < watermark_us))
        .values(watermark_us=watermark_us)
    )
