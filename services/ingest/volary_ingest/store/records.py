"""Ids of accepted records, and rows that were pushed and are in no file yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from volary_kit.database import Transaction

from volary_ingest.store import SourceKey


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A pushed record: its id, when it was known (microseconds), and its values as JSON."""

    record_id: str
    known_us: int
    batch: str
    row: str


ADD_IDS = text(
    "WITH given AS (SELECT unnest(CAST(:ids AS text[])) AS record_id),"
    " added AS (INSERT INTO records (project, source, record_id)"
    " SELECT :project, :source, record_id FROM given ORDER BY record_id"
    " ON CONFLICT DO NOTHING RETURNING record_id)"
    " SELECT record_id FROM given EXCEPT SELECT record_id FROM added"
)
ADD_PENDING = text(
    "INSERT INTO pending_records (project, source, record_id, known_us, batch, row)"
    " SELECT :project, :source, p.id, p.known_us, :batch, p.row"
    " FROM unnest(CAST(:ids AS text[]), CAST(:known AS bigint[]), CAST(:rows AS text[]))"
    " AS p(id, known_us, row)"
)
TAKE_PENDING = text(
    "DELETE FROM pending_records WHERE project = :project AND source = :source"
    " AND (CAST(:until AS bigint) IS NULL OR known_us < :until)"
    " RETURNING record_id, known_us, batch, row"
)


async def add_ids(transaction: Transaction, key: SourceKey, ids: Sequence[str]) -> set[str]:
    """Claim record ids for this transaction; return those that were taken before."""
    if not ids:
        return set()
    found = await transaction.execute(ADD_IDS, key.row() | {"ids": list(ids)})
    return set(found.scalars())


async def add_pending(
    transaction: Transaction, key: SourceKey, batch: str, rows: Sequence[PendingRow]
) -> None:
    """Keep pushed rows until a pull writes them to a file."""
    if rows:
        await transaction.execute(
            ADD_PENDING,
            key.row()
            | {
                "batch": batch,
                "ids": [row.record_id for row in rows],
                "known": [row.known_us for row in rows],
                "rows": [row.row for row in rows],
            },
        )


async def take_pending(
    transaction: Transaction, key: SourceKey, until_us: int | None
) -> list[PendingRow]:
    """Remove and return the pushed rows known before `until_us`."""
    found = await transaction.execute(TAKE_PENDING, key.row() | {"until": until_us})
    return [PendingRow(row.record_id, row.known_us, row.batch, row.row) for row in found]
