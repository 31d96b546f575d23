"""Pushing: records are checked, taken once by their id and published, in one transaction."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl
from volary.events.v1 import event_pb2
from volary_kit import outbox
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import FailedPrecondition
from volary_kit.streams import SOURCE_EVENTS

from volary_ingest.domain.intake import Intake, take
from volary_ingest.domain.rows import TextRow, encoded, micros, text_frame
from volary_ingest.domain.source import read_source
from volary_ingest.events import record_events, watermark_event
from volary_ingest.references import ReferenceTables
from volary_ingest.store import SourceKey, batches, quarantine, records, sources
from volary_ingest.store.batches import Batch
from volary_ingest.store.quarantine import QuarantinedRecord
from volary_ingest.store.records import PendingRow
from volary_ingest.store.sources import SourceRow


@dataclass(frozen=True, slots=True)
class PushReport:
    """What became of pushed records, and the watermark from now on."""

    intake: Intake
    accepted: int
    duplicates: int
    watermark_us: int | None = None


class Pushes:
    """Takes pushed records in."""

    def __init__(self, database: Database, references: ReferenceTables, clock: Clock) -> None:
        self._database = database
        self._references = references
        self._clock = clock

    async def check(self, key: SourceKey, rows: Sequence[TextRow]) -> Intake:
        """Say what the contract makes of records, and write nothing."""
        return (await self._checked(key, rows))[1]

    async def push(
        self, key: SourceKey, rows: Sequence[TextRow], watermark_us: int | None
    ) -> PushReport:
        """Take records in and move the watermark, which never goes back.

        Raises FailedPrecondition `CONTRACT_HALTED` when a rule of severity halt is broken.
        """
        row, intake = await self._checked(key, rows)
        halt = intake.halt
        if halt is not None:
            raise FailedPrecondition(
                "CONTRACT_HALTED",
                f"rule {halt.rule} refuses these records: {halt.summary}",
                {"source": key.name, "rule": halt.rule},
            )
        async with self._database.transaction() as transaction:
            before_us = await sources.lock_watermark(transaction, key)
            report, events = await self._take(transaction, row, intake)
            if watermark_us is not None and (before_us is None or watermark_us > before_us):
                await sources.move_watermark(transaction, key, watermark_us)
                events.append(watermark_event(key, watermark_us))
                before_us = watermark_us
            if events:
                await outbox.add_all(transaction, SOURCE_EVENTS, events)
        return replace(report, watermark_us=before_us)

    async def replay(self, key: SourceKey, position: int) -> QuarantinedRecord:
        """Take a record that was put aside in again.

        Raises FailedPrecondition `STILL_QUARANTINED` when the contract still refuses it.
        """
        async with self._database.transaction() as transaction:
            await sources.lock_watermark(transaction, key)
            aside = await quarantine.find(transaction, key, position)
            if aside.replay_us is not None:
                return aside
            row, intake = await self._checked(key, [aside.record])
            refused = intake.halt or next(iter(intake.aside), None)
            if refused is not None:
                raise FailedPrecondition(
                    "STILL_QUARANTINED",
                    f"the contract still refuses it: rule {refused.rule}",
                    {"rule": refused.rule},
                )
            _report, events = await self._take(transaction, row, intake)
            await outbox.add_all(transaction, SOURCE_EVENTS, events)
            now_us = self._clock.now_us()
            await quarantine.mark_replayed(transaction, key, position, now_us)
            return replace(aside, replay_us=now_us)

    async def _checked(self, key: SourceKey, rows: Sequence[TextRow]) -> tuple[SourceRow, Intake]:
        async with self._database.read() as transaction:
            row = await sources.find(transaction, key)
            source = read_source(row.document)
            tables = await self._references.of(transaction, key.project, source)
        frame = text_frame(rows, source.spec)
        return row, await asyncio.to_thread(take, frame, source.spec, tables)

    async def _take(
        self, transaction: Transaction, row: SourceRow, intake: Intake
    ) -> tuple[PushReport, list[event_pb2.Event]]:
        """Store what is new; return what became of the records, and the events of the new ones."""
        ids = intake.accepted.get_column("record_id").to_list()
        taken = await records.add_ids(transaction, row.key, ids)
        new = intake.accepted
        if taken:
            new = new.filter(~pl.col("record_id").is_in(list(taken)))
        report = PushReport(intake, new.height, intake.duplicates + len(taken))
        if not new.height and not intake.aside:
            return report, []
        batch = self._batch(row, report)
        await batches.add(transaction, row.key, batch)
        await quarantine.add(transaction, row.key, batch.id, intake.aside, batch.commit_us)
        await records.add_pending(transaction, row.key, batch.id, _pending(new, batch.id))
        return report, list(record_events(row.key, new, batch.id))

    def _batch(self, row: SourceRow, report: PushReport) -> Batch:
        intake = report.intake
        return Batch(
            id=uuid.uuid4().hex,
            is_halted=False,
            read=intake.read,
            accepted=report.accepted,
            duplicates=report.duplicates,
            quarantined=len(intake.aside),
            defaulted=intake.defaulted,
            outcomes=[outcome for outcome in intake.outcomes if outcome.rows],
            known_from_us=None,
            known_until_us=None,
            source_revision=row.revision,
            commit_us=self._clock.now_us(),
        )


def _pending(new: pl.DataFrame, batch: str) -> list[PendingRow]:
    ids = new.get_column("record_id").to_list()
    return [
        PendingRow(record_id, known_us, batch, text)
        for record_id, known_us, text in zip(
            ids, micros(new, "known_at"), encoded(new), strict=True
        )
    ]
