"""The tables that sources look up in other sources, kept by snapshot."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import polars as pl
from volary_kit.database import Transaction
from volary_kit.errors import FailedPrecondition

from volary_ingest.domain.source import Source
from volary_ingest.store import SourceKey, snapshots
from volary_ingest.store.frames import Frames

MAX_TABLES = 64
_Place = tuple[SourceKey, str, frozenset[str]]


class ReferenceTables:
    """Reads the newest snapshot of what a source refers to; a snapshot is read once."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._tables: OrderedDict[_Place, pl.DataFrame] = OrderedDict()

    async def of(
        self, transaction: Transaction, project: str, source: Source
    ) -> dict[str, pl.DataFrame]:
        """Return the tables of a source by name.

        Raises FailedPrecondition `REFERENCE_EMPTY` when one has no rows in a snapshot yet.
        """
        return {
            name: await self._newest(transaction, project, source, name, frozenset(columns))
            for name, columns in source.spec.references().items()
        }

    async def _newest(
        self,
        transaction: Transaction,
        project: str,
        source: Source,
        name: str,
        columns: frozenset[str],
    ) -> pl.DataFrame:
        key = SourceKey(project, name)
        snapshot_id = await snapshots.latest_id(transaction, key)
        if snapshot_id is None:
            raise _empty(source, name)
        place = (key, snapshot_id, columns)
        if place not in self._tables:
            snapshot = await snapshots.find(transaction, key, snapshot_id)
            if not snapshot.files:
                raise _empty(source, name)
            table = await asyncio.to_thread(self._frames.read, snapshot, sorted(columns))
            self._tables[place] = table
            while len(self._tables) > MAX_TABLES:
                self._tables.popitem(last=False)
        return self._tables[place]


def _empty(source: Source, name: str) -> FailedPrecondition:
    return FailedPrecondition(
        "REFERENCE_EMPTY",
        f"{source.name} refers to {name}, which has no rows in a snapshot: pull it first",
        {"source": source.name, "reference": name},
    )
