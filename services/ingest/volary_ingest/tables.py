"""The tables that the stores query; migrations make them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData()
TEXT, BIGINT, BOOLEAN, JSON = sa.Text, sa.BigInteger, sa.Boolean, JSONB


def _table(name: str, /, **kinds: Any) -> sa.Table:
    columns = [sa.Column(column, kind) for column, kind in kinds.items()]
    key = [sa.Column("project", TEXT), sa.Column("source", TEXT)]
    return sa.Table(name, metadata, *key, *columns)


sources = _table(
    "sources",
    document=JSON,
    document_hash=TEXT,
    revision=BIGINT,
    cursor_us=BIGINT,
    create_us=BIGINT,
    update_us=BIGINT,
)
watermarks = _table("watermarks", watermark_us=BIGINT)
batches = _table(
    "batches",
    batch=TEXT,
    position=BIGINT,
    is_halted=BOOLEAN,
    read_rows=BIGINT,
    accepted_rows=BIGINT,
    duplicate_rows=BIGINT,
    quarantined_rows=BIGINT,
    defaulted_values=BIGINT,
    rules=JSON,
    known_from_us=BIGINT,
    known_until_us=BIGINT,
    source_revision=BIGINT,
    commit_us=BIGINT,
    snapshot=TEXT,
)
quarantined_records = _table(
    "quarantined_records",
    position=BIGINT,
    digest=TEXT,
    rule=TEXT,
    reason=TEXT,
    record=JSON,
    batch=TEXT,
    quarantine_us=BIGINT,
    replay_us=BIGINT,
)
files = _table(
    "files",
    number=BIGINT,
    digest=TEXT,
    rows=BIGINT,
    size_bytes=BIGINT,
    batch=TEXT,
    columns=JSON,
)
snapshots = _table(
    "snapshots",
    snapshot=TEXT,
    files=BIGINT,
    rows=BIGINT,
    known_until_us=BIGINT,
    create_us=BIGINT,
)
