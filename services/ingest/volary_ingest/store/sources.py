"""Declared sources, their cursors and watermarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_ingest.store import SourceKey
from volary_ingest.tables import sources, watermarks


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source as it is stored; `cursor_us` is the exclusive bound of what has been pulled."""

    project: str
    source: str
    document: dict[str, Any]
    document_hash: str
    revision: int
    cursor_us: int | None
    create_us: int
    update_us: int

    @property
    def key(self) -> SourceKey:
        """Its key."""
        return SourceKey(self.project, self.source)


async def find(transaction: Transaction, key: SourceKey, *, lock: bool = False) -> SourceRow:
    """Return a source, locked against other pulls if asked; raise NotFound `SOURCE_NOT_FOUND`."""
    query = sa.select(sources).filter_by(**key.row())
    row = (await transaction.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound("SOURCE_NOT_FOUND", f"{key.name} does not exist", {"source": key.name})
    return SourceRow(*row)


async def page(transaction: Transaction, project: str, page: Page) -> Sequence[SourceRow]:
    """Return sources in order of name."""
    query = sa.select(sources).where(
        sources.c.project == project, sources.c.source > str(page.after or "")
    )
    found = await transaction.execute(query.order_by(sources.c.source).limit(page.limit))
    return [SourceRow(*row) for row in found]


async def put(
    transaction: Transaction,
    key: SourceKey,
    document: dict[str, Any],
    document_hash: str,
    now_us: int,
) -> SourceRow:
    """Store a document; the same again changes nothing, another one is the next revision."""
    new = insert(sources).values(
        **key.row(),
        document=document,
        document_hash=document_hash,
        revision=1,
        create_us=now_us,
        update_us=now_us,
    )
    changed = new.on_conflict_do_update(
        index_elements=["project", "source"],
        set_={
            "document": new.excluded.document,
            "document_hash": new.excluded.document_hash,
            "revision": sources.c.revision + 1,
            "update_us": new.excluded.update_us,
        },
        where=sources.c.document_hash != new.excluded.document_hash,
    )
    await transaction.execute(changed)
    await transaction.execute(insert(watermarks).values(**key.row()).on_conflict_do_nothing())
    return await find(transaction, key)


async def move_cursor(
    transaction: Transaction, key: SourceKey, cursor_us: int | None, now_us: int
) -> None:
    """Set the cursor of a source that this transaction has locked."""
    await transaction.execute(
        sa.update(sources).filter_by(**key.row()).values(cursor_us=cursor_us, update_us=now_us)
    )


async def lock_watermark(transaction: Transaction, key: SourceKey) -> int | None:
    """Return the watermark; pushes to one source wait for each other from here on."""
    query = sa.select(watermarks.c.watermark_us).filter_by(**key.row()).with_for_update()
    return (await transaction.execute(query)).scalar_one_or_none()


async def move_watermark(transaction: Transaction, key: SourceKey, watermark_us: int) -> None:
    """Set the watermark of a source that this transaction has locked."""
    await transaction.execute(
        sa.update(watermarks).filter_by(**key.row()).values(watermark_us=watermark_us)
    )
