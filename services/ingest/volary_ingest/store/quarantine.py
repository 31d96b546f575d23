"""Records that were put aside, each fault of each record once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_ingest.domain.intake import Aside
from volary_ingest.store import SourceKey
from volary_ingest.tables import quarantined_records as table

ADD = sa.text(
    "INSERT INTO quarantined_records"
    " (project, source, digest, rule, reason, record, batch, quarantine_us)"
    " SELECT :project, :source, q.digest, q.rule, q.reason, q.record::jsonb, :batch, :now"
    " FROM unnest(CAST(:digests AS text[]), CAST(:rules AS text[]), CAST(:reasons AS text[]),"
    " CAST(:records AS text[])) AS q(digest, rule, reason, record)"
    " ON CONFLICT (project, source, digest) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A record that was put aside; its id is its position."""

    position: int
    rule: str
    reason: str
    record: dict[str, str | None]
    batch: str
    quarantine_us: int
    replay_us: int | None


async def add(
    transaction: Transaction, key: SourceKey, batch: str, aside: Sequence[Aside], now_us: int
) -> None:
    """Keep what was put aside; what is there already stays as it is."""
    if aside:
        columns = {
            "digests": [each.digest for each in aside],
            "rules": [each.rule for each in aside],
            "reasons": [each.reason for each in aside],
            "records": [_json(each.record) for each in aside],
        }
        await transaction.execute(ADD, key.row() | {"batch": batch, "now": now_us} | columns)


async def page(
    transaction: Transaction, key: SourceKey, page: Page, rule: str = ""
) -> Sequence[QuarantinedRecord]:
    """Return what is still put aside, newest first."""
    query = sa.select(table).filter_by(**key.row()).where(table.c.replay_us.is_(None))
    if rule:
        query = query.where(table.c.rule == rule)
    if page.after is not None:
        query = query.where(table.c.position < int(page.after))
    found = await transaction.execute(query.order_by(table.c.position.desc()).limit(page.limit))
    return [_record(row) for row in found]


async def find(transaction: Transaction, key: SourceKey, position: int) -> QuarantinedRecord:
    """Return and lock a record; raise NotFound `QUARANTINED_RECORD_NOT_FOUND`."""
    query = sa.select(table).filter_by(**key.row(), position=position).with_for_update()
    row = (await transaction.execute(query)).one_or_none()
    if row is None:
        name = f"{key.name}/quarantine/{position}"
        raise NotFound("QUARANTINED_RECORD_NOT_FOUND", f"{name} does not exist", {"record": name})
    return _record(row)


async def mark_replayed(
    transaction: Transaction, key: SourceKey, position: int, now_us: int
) -> None:
    """Say that a record was taken in after all."""
    await transaction.execute(
        sa.update(table).filter_by(**key.row(), position=position).values(replay_us=now_us)
    )


def _json(record: dict[str, str | None]) -> str:
    # Postgres has no text with a NUL in it
    clean = {
        name.replace("\0", "\ufffd"): value and value.replace("\0", "\ufffd")
        for name, value in record.items()
    }
    return json.dumps(clean, ensure_ascii=False)


def _record(row: Any) -> QuarantinedRecord:
    return QuarantinedRecord(
        row.position, row.rule, row.reason, row.record, row.batch, row.quarantine_us, row.replay_us
    )
