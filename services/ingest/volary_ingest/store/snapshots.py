"""The catalog of files and of the snapshots that they make up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_ingest.domain.snapshot import DataFile, Snapshot, content_hash
from volary_ingest.store import SourceKey
from volary_ingest.tables import files, snapshots

LATEST = "latest"


async def all_files(transaction: Transaction, key: SourceKey) -> list[DataFile]:
    """Return every file of a source, in order."""
    query = sa.select(files).filter_by(**key.row()).order_by(files.c.number)
    return [_file(row) for row in await transaction.execute(query)]


async def add_file(transaction: Transaction, key: SourceKey, number: int, file: DataFile) -> None:
    """Add the next file of a source, counted from 1."""
    await transaction.execute(
        sa.insert(files).values(
            **key.row(),
            number=number,
            digest=file.digest,
            rows=file.rows,
            size_bytes=file.size_bytes,
            batch=file.batch,
            columns=dict(file.columns),
        )
    )


async def add(
    transaction: Transaction,
    key: SourceKey,
    content: Sequence[DataFile],
    known_until_us: int | None,
    now_us: int,
) -> Snapshot:
    """Return the snapshot of these files, which are all of the source; make it if it is new."""
    new = insert(snapshots).values(
        **key.row(),
        snapshot=content_hash(content),
        files=len(content),
        rows=sum(file.rows for file in content),
        known_until_us=known_until_us,
        create_us=now_us,
    )
    await transaction.execute(new.on_conflict_do_nothing())
    return await find(transaction, key, content_hash(content))


async def find(transaction: Transaction, key: SourceKey, snapshot: str) -> Snapshot:
    """Return a snapshot, `latest` the newest; raise NotFound `SNAPSHOT_NOT_FOUND`."""
    query = sa.select(snapshots).filter_by(**key.row())
    if snapshot == LATEST:
        query = query.order_by(snapshots.c.files.desc()).limit(1)
    else:
        query = query.filter_by(snapshot=snapshot)
    row = (await transaction.execute(query)).one_or_none()
    if row is None:
        name = f"{key.name}/snapshots/{snapshot}"
        raise NotFound("SNAPSHOT_NOT_FOUND", f"{name} does not exist", {"snapshot": name})
    return _snapshot(row, await all_files(transaction, key))


async def latest_id(transaction: Transaction, key: SourceKey) -> str | None:
    """Return the id of the newest snapshot, None when there is none."""
    query = sa.select(snapshots.c.snapshot).filter_by(**key.row())
    return await transaction.scalar(query.order_by(snapshots.c.files.desc()).limit(1))


async def page(transaction: Transaction, key: SourceKey, page: Page) -> list[tuple[int, Snapshot]]:
    """Return snapshots, newest first, each with its place: the number of its files."""
    query = sa.select(snapshots).filter_by(**key.row())
    if page.after is not None:
        query = query.where(snapshots.c.files < int(page.after))
    found = await transaction.execute(query.order_by(snapshots.c.files.desc()).limit(page.limit))
    rows = found.all()
    content = await all_files(transaction, key)
    return [(row.files, _snapshot(row, content)) for row in rows]


def _snapshot(row: Any, content: Sequence[DataFile]) -> Snapshot:
    return Snapshot(row.snapshot, content[: row.files], row.known_until_us, row.create_us)


def _file(row: Any) -> DataFile:
    return DataFile(row.digest, row.rows, row.size_bytes, row.batch, row.columns)
