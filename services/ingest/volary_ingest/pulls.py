"""Pulling: what is new in a source becomes a file, and the cursor moves, in one transaction."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import polars as pl
from volary_kit import outbox
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import Aborted, FailedPrecondition
from volary_kit.streams import SOURCE_EVENTS

from volary_ingest.domain.intake import Intake, Window, take
from volary_ingest.domain.rows import decoded
from volary_ingest.domain.snapshot import DataFile, Snapshot, check_columns
from volary_ingest.domain.source import Source, read_source
from volary_ingest.events import record_events
from volary_ingest.references import ReferenceTables
from volary_ingest.store import SourceKey, batches, quarantine, records, snapshots, sources
from volary_ingest.store.batches import Batch
from volary_ingest.store.frames import Frames
from volary_ingest.store.sources import SourceRow

Read = Callable[[Source], pl.DataFrame]
Progress = Callable[[int, str], Awaitable[None]]
PUBLISHED_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought; the batch has no id when there was nothing new."""

    batch: Batch
    snapshot: Snapshot


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the transaction."""

    row: SourceRow
    window: Window
    intake: Intake
    publish: bool

    @property
    def cursor_us(self) -> int | None:
        """Where the cursor will be: the bound asked for, else just after the last row."""
        cursor_us, end_us, last_us = self.row.cursor_us, self.window.end_us, self.intake.last_us
        if end_us is None:
            end_us = None if last_us is None else last_us + 1
        return max((each for each in (cursor_us, end_us) if each is not None), default=None)


class Pulls:
    """Pulls declared sources, after the sources that they refer to."""

    def __init__(
        self,
        database: Database,
        frames: Frames,
        references: ReferenceTables,
        read: Read,
        clock: Clock,
    ) -> None:
        self._database = database
        self._frames = frames
        self._references = references
        self._read = read
        self._clock = clock

    async def run(
        self,
        key: SourceKey,
        until_us: int | None,
        progress: Progress,
        *,
        publish: bool = False,
        above: Sequence[str] = (),
    ) -> Pulled:
        """Take in what was known before `until_us` and is not there yet.

        Raises FailedPrecondition `CONTRACT_HALTED` when a rule of severity halt is broken:
        nothing is taken then. Raises Aborted `PULL_RACED` when another pull was faster.
        """
        async with self._database.read() as transaction:
            row = await sources.find(transaction, key)
        source = read_source(row.document)
        await self._pull_references(source, key, until_us, progress, above)
        await progress(0, f"reading {key.source}")
        plan = await self._plan(row, source, until_us, publish=publish)
        await progress(plan.intake.read, f"storing {key.source}")
        if plan.intake.halt is not None:
            await self._refuse(plan)
        async with self._database.transaction() as transaction:
            return await self._store(transaction, plan)

    async def _pull_references(
        self,
        source: Source,
        key: SourceKey,
        until_us: int | None,
        progress: Progress,
        above: Sequence[str],
    ) -> None:
        path = [*above, key.source]
        for name in source.spec.references():
            if name in path:
                raise FailedPrecondition(
                    "SOURCE_CYCLE",
                    f"sources refer to each other: {' -> '.join([*path, name])}",
                    {"source": name},
                )
            await self.run(SourceKey(key.project, name), until_us, progress, above=path)

    async def _plan(
        self, row: SourceRow, source: Source, until_us: int | None, *, publish: bool
    ) -> _Plan:
        async with self._database.read() as transaction:
            tables = await self._references.of(transaction, row.project, source)
        window = Window(row.cursor_us, until_us)
        intake = await asyncio.to_thread(self._take, source, tables, window)
        return _Plan(row, window, intake, publish)

    def _take(self, source: Source, tables: dict[str, pl.DataFrame], window: Window) -> Intake:
        return take(self._read(source), source.spec, tables, window)

    async def _refuse(self, plan: _Plan) -> None:
        halt = plan.intake.halt
        assert halt is not None
        key = plan.row.key
        batch = replace(self._batch(plan), is_halted=True, accepted=0)
        async with self._database.transaction() as transaction:
            await batches.add(transaction, key, batch)
        raise FailedPrecondition(
            "CONTRACT_HALTED",
            f"rule {halt.rule} halted the pull of {key.name}: {halt.summary}",
            {"source": key.name, "rule": halt.rule, "batch": f"{key.name}/batches/{batch.id}"},
        )

    async def _store(self, transaction: Transaction, plan: _Plan) -> Pulled:
        key, now_us = plan.row.key, self._clock.now_us()
        await self._require_unchanged(transaction, plan.row)
        new, batch = await self._claim(transaction, plan)
        pending = await records.take_pending(transaction, key, plan.window.end_us)
        if batch.read or pending:
            batch = await batches.add(transaction, key, batch)
            await quarantine.add(transaction, key, batch.id, plan.intake.aside, now_us)
        content = await self._files(transaction, key, new, pending, batch)
        snapshot = await snapshots.add(transaction, key, content, plan.window.end_us, now_us)
        ids = {batch.id, *(row.batch for row in pending)}
        await batches.set_snapshot(transaction, key, sorted(ids), snapshot.id)
        if plan.cursor_us != plan.row.cursor_us:
            await sources.move_cursor(transaction, key, plan.cursor_us, now_us)
        if plan.publish:
            await _publish(transaction, key, new, batch.id)
        saved = bool(batch.position)
        return Pulled(replace(batch, id=batch.id if saved else "", snapshot=snapshot.id), snapshot)

    async def _require_unchanged(self, transaction: Transaction, seen: SourceRow) -> None:
        row = await sources.find(transaction, seen.key, lock=True)
        if (row.revision, row.cursor_us) != (seen.revision, seen.cursor_us):
            raise Aborted(
                "PULL_RACED",
                f"another pull or a change of {seen.key.name} was faster",
                {"source": seen.key.name},
                retry_after_s=0.1,
            )

    async def _claim(self, transaction: Transaction, plan: _Plan) -> tuple[pl.DataFrame, Batch]:
        """Return the rows whose ids nobody had, and the batch that counts the others."""
        accepted = plan.intake.accepted
        ids = accepted.get_column("record_id").to_list()
        taken = await records.add_ids(transaction, plan.row.key, ids)
        if taken:
            accepted = accepted.filter(~pl.col("record_id").is_in(list(taken)))
        batch = self._batch(plan)
        return accepted, replace(
            batch, accepted=accepted.height, duplicates=batch.duplicates + len(taken)
        )

    def _batch(self, plan: _Plan) -> Batch:
        intake = plan.intake
        return Batch(
            id=uuid.uuid4().hex,
            is_halted=False,
            read=intake.read,
            accepted=intake.accepted.height,
            duplicates=intake.duplicates,
            quarantined=len(intake.aside),
            defaulted=intake.defaulted,
            outcomes=intake.outcomes,
            known_from_us=plan.window.start_us,
            known_until_us=plan.window.end_us,
            source_revision=plan.row.revision,
            commit_us=self._clock.now_us(),
        )

    async def _files(
        self,
        transaction: Transaction,
        key: SourceKey,
        new: pl.DataFrame,
        pending: Sequence[records.PendingRow],
        batch: Batch,
    ) -> list[DataFile]:
        """Write new and pushed rows as the next file; return all files of the source."""
        content = await snapshots.all_files(transaction, key)
        pushed = decoded([row.row for row in pending], new.schema)
        rows = pl.concat([new, pushed])
        if rows.height:
            file = await asyncio.to_thread(self._frames.write, rows, batch.id)
            check_columns(content, file.columns)
            content.append(file)
            await snapshots.add_file(transaction, key, len(content), file)
        return content


async def _publish(
    transaction: Transaction, key: SourceKey, rows: pl.DataFrame, batch: str
) -> None:
    for part in rows.iter_slices(PUBLISHED_AT_ONCE):
        events = list(record_events(key, part, batch))
        await outbox.add_all(transaction, SOURCE_EVENTS, events)
