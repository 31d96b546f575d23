"""What is declared and what is stored: sources, batches, quarantine, snapshots and their rows."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.errors import InvalidArgument
from volary_kit.pages import Page

from volary_ingest.domain.snapshot import Snapshot
from volary_ingest.domain.source import read_source
from volary_ingest.store import SourceKey, batches, quarantine, snapshots, sources
from volary_ingest.store.batches import Batch
from volary_ingest.store.frames import Frames, arrow_chunks
from volary_ingest.store.quarantine import QuarantinedRecord
from volary_ingest.store.sources import SourceRow


class Catalog:
    """Declares and reads; what brings rows in is elsewhere."""

    def __init__(self, database: Database, frames: Frames, clock: Clock) -> None:
        self._database = database
        self._frames = frames
        self._clock = clock

    async def apply(
        self, key: SourceKey, document: Mapping[str, Any], *, validate_only: bool
    ) -> SourceRow:
        """Declare a source; raise InvalidArgument `DOCUMENT_INVALID` with every fault."""
        source = read_source(document)
        if source.name != key.source:
            raise InvalidArgument(
                "NAME_MISMATCH",
                f"the document names {source.name}, the request {key.source}",
                field="source.document.name",
            )
        now_us = self._clock.now_us()
        digest = document_hash(document)
        if validate_only:
            return SourceRow(
                key.project, key.source, dict(document), digest, 0, None, now_us, now_us
            )
        async with self._database.transaction() as transaction:
            return await sources.put(transaction, key, dict(document), digest, now_us)

    async def source(self, key: SourceKey) -> SourceRow:
        """Return a source; raise NotFound."""
        async with self._database.read() as transaction:
            return await sources.find(transaction, key)

    async def sources(self, project: str, page: Page) -> Sequence[SourceRow]:
        """Return one page of sources in order of name."""
        async with self._database.read() as transaction:
            return await sources.page(transaction, project, page)

    async def batches(self, key: SourceKey, page: Page) -> Sequence[Batch]:
        """Return one page of batches, newest first."""
        async with self._database.read() as transaction:
            await sources.find(transaction, key)
            return await batches.page(transaction, key, page)

    async def quarantine(
        self, key: SourceKey, page: Page, rule: str
    ) -> Sequence[QuarantinedRecord]:
        """Return one page of what is put aside, newest first."""
        async with self._database.read() as transaction:
            await sources.find(transaction, key)
            return await quarantine.page(transaction, key, page, rule)

    async def snapshot(self, key: SourceKey, snapshot: str) -> Snapshot:
        """Return a snapshot, `latest` the newest; raise NotFound."""
        async with self._database.read() as transaction:
            await sources.find(transaction, key)
            return await snapshots.find(transaction, key, snapshot)

    async def snapshots(self, key: SourceKey, page: Page) -> Sequence[tuple[int, Snapshot]]:
        """Return one page of snapshots, newest first, each with its place."""
        async with self._database.read() as transaction:
            await sources.find(transaction, key)
            return await snapshots.page(transaction, key, page)

    async def rows(
        self,
        key: SourceKey,
        snapshot: str,
        columns: Sequence[str],
        known_from_us: int | None,
        known_until_us: int | None,
    ) -> AsyncIterator[bytes]:
        """Yield rows of a snapshot as one Arrow IPC stream in pieces of at most 1 MiB."""
        found = await self.snapshot(key, snapshot)
        frame = await asyncio.to_thread(
            self._frames.read, found, columns, known_from_us, known_until_us
        )
        chunks = arrow_chunks(frame)
        while (chunk := await asyncio.to_thread(_next, chunks)) is not None:
            yield chunk


def document_hash(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document in canonical form: sorted keys, whole floats as integers."""
    text = json.dumps(_canonical(document), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_canonical(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _next(chunks: Iterator[bytes]) -> bytes | None:
    return next(chunks, None)
