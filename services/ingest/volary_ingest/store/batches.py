"""Batches: what was taken in at once, and how that went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from volary_kit.database import Transaction
from volary_kit.pages import Page

from volary_ingest.domain.contract import Outcome
from volary_ingest.store import SourceKey
from volary_ingest.tables import batches


@dataclass(frozen=True, slots=True)
class Batch:
    """One intake: `read = accepted + duplicates + quarantined`, unless a rule halted it."""

    id: str
    is_halted: bool
    read: int
    accepted: int
    duplicates: int
    quarantined: int
    defaulted: int
    outcomes: Sequence[Outcome]
    known_from_us: int | None
    known_until_us: int | None
    source_revision: int
    commit_us: int
    snapshot: str | None = None
    position: int = 0


async def add(transaction: Transaction, key: SourceKey, batch: Batch) -> Batch:
    """Store a batch; return it with its position."""
    values: dict[str, Any] = {
        "batch": batch.id,
        "is_halted": batch.is_halted,
        "read_rows": batch.read,
        "accepted_rows": batch.accepted,
        "duplicate_rows": batch.duplicates,
        "quarantined_rows": batch.quarantined,
        "defaulted_values": batch.defaulted,
        "rules": [asdict(outcome) for outcome in batch.outcomes],
        "known_from_us": batch.known_from_us,
        "known_until_us": batch.known_until_us,
        "source_revision": batch.source_revision,
        "commit_us": batch.commit_us,
        "snapshot": batch.snapshot,
    }
    new = sa.insert(batches).values(**key.row(), **values).returning(batches.c.position)
    return replace(batch, position=(await transaction.execute(new)).scalar_one())


async def set_snapshot(
    transaction: Transaction, key: SourceKey, ids: Sequence[str], snapshot: str
) -> None:
    """Say which snapshot first holds rows of these batches."""
    await transaction.execute(
        sa.update(batches)
        .filter_by(**key.row())
        .where(batches.c.batch.in_(ids), batches.c.snapshot.is_(None))
        .values(snapshot=snapshot)
    )


async def page(transaction: Transaction, key: SourceKey, page: Page) -> Sequence[Batch]:
    """Return batches, newest first."""
    query = sa.select(batches).filter_by(**key.row())
    if page.after is not None:
        query = query.where(batches.c.position < int(page.after))
    found = await transaction.execute(query.order_by(batches.c.position.desc()).limit(page.limit))
    return [_batch(row) for row in found]


def _batch(row: Any) -> Batch:
    return Batch(
        id=row.batch,
        is_halted=row.is_halted,
        read=row.read_rows,
        accepted=row.accepted_rows,
        duplicates=row.duplicate_rows,
        quarantined=row.quarantined_rows,
        defaulted=row.defaulted_values,
        outcomes=[Outcome(**rule) for rule in row.rules],
        known_from_us=row.known_from_us,
        known_until_us=row.known_until_us,
        source_revision=row.source_revision,
        commit_us=row.commit_us,
        snapshot=row.snapshot,
        position=row.position,
    )
