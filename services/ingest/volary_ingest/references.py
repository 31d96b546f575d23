"""The tables that sources look up in other sources, kept by snapshot."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import polars as pl
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition, NotFound

from volary_ingest.domain.snapshot import Snapshot
from volary_ingest.domain.source import Source
from volary_ingest.store import SourceKey, snapshots
from volary_ingest.store.frames import Frames

MAX_TABLES = 64


class ReferenceTables:
    """Reads the newest snapshot of what a source refers to; a snapshot is read once."""

    def __init__(self, database: Database, frames: Frames) -> None:
        self._database = database
        self._frames = frames
        self._tables: OrderedDict[tuple[SourceKey, str, tuple[str, ...]], pl.DataFrame]
        self._tables = OrderedDict()

    async def of(self, project: str, source: Source) -> dict[str, pl.DataFrame]:
        """Return the tables of a source by name.

        Raises FailedPrecondition `REFERENCE_NOT_PULLED` when one has no snapshot yet.
        """
        wanted = source.spec.references()
        found: dict[str, Snapshot] = {}
        async with self._database.read() as transaction:
            for name in wanted:
                try:
                    key = SourceKey(project, name)
                    found[name] = await snapshots.find(transaction, key, snapshots.LATEST)
                except NotFound:
                    raise _not_pulled(source, name) from None
        return {
            name: await self._table(SourceKey(project, name), snapshot, tuple(sorted(wanted[name])))
            for name, snapshot in found.items()
        }

    async def _table(
        self, key: SourceKey, snapshot: Snapshot, columns: tuple[str, ...]
    ) -> pl.DataFrame:
        place = (key, snapshot.id, columns)
        if place not in self._tables:
            table = await asyncio.to_thread(self._frames.read, snapshot, columns)
            self._tables[place] = table
            while len(self._tables) > MAX_TABLES:
                self._tables.popitem(last=False)
        return self._tables[place]


def _not_pulled(source: Source, name: str) -> FailedPrecondition:
    return FailedPrecondition(
        "REFERENCE_NOT_PULLED",
        f"{source.name} refers to {name}, which has no snapshot: pull it first",
        {"source": source.name, "reference": name},
    )
