"""The prediction log: Parquet by model and event day, each event in it once.

Events wait in Postgres until they are many or old, then one transaction turns those of a model
and day into a file and its row in the catalogue. A file is only there once the catalogue names
it, so a crash at any point neither loses nor doubles an event; what it leaves behind is removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from volary.events.v1.event_pb2 import Event
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import Unavailable, VolaryError
from volary_kit.timestamps import duration_us, to_us

from volary_monitor.domain.windows import Span
from volary_monitor.tables import log_files, log_pending

log = logging.getLogger(__name__)
P, F = log_pending.c, log_files.c
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOOK_EVERY_S = 2.0
RETRY_S = 1.0
READS = 3
TIME = "event_time"
SWEEP = "hashtextextended('volary.monitor.log', 0)"
MAX_ROWS = 200_000  # of one file: about 100 MB of events in memory
INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    {
        "event_id": pa.string(),
        "prediction_id": pa.string(),
        "request_key": pa.string(),
        "version": pa.int64(),
        "digest": pa.string(),
        "tier": pa.string(),
        "route": pa.string(),
        "shadow": pa.bool_(),
        "subject": pa.string(),
        "entity_keys": pa.map_(pa.string(), pa.string()),
        "event_time": INSTANT,
        "known_at": INSTANT,
        "feature_set": pa.string(),
        "schema_hash": pa.string(),
        "features": pa.list_(pa.float64()),
        "outputs": pa.list_(pa.float64()),
        "confidence": pa.float64(),
        "latency_us": pa.int64(),
        "queue_us": pa.int64(),
        "batch_size": pa.int32(),
        "code": pa.int32(),
        "trace_id": pa.string(),
        "replied_at": INSTANT,
        "feature_watermark": INSTANT,
    }
)


@dataclass(frozen=True)
class Part:
    """The rows of one model and one event day."""

    project: str
    model: str
    day: str

    @property
    def folder(self) -> str:
        """Where the files lie, in the hive form that query engines prune by."""
        return f"project={self.project}/model={self.model}/day={self.day}"


@dataclass(frozen=True)
class Limits:
    """When a part becomes a file: rows, age; and when its files are merged."""

    rows: int
    age_s: float
    files: int


class PredictionLog:
    """Writes and reads the log below one folder."""

    def __init__(self, folder: Path, database: Database, clock: Clock, limits: Limits) -> None:
        self._folder = folder
        self._database = database
        self._clock = clock
        self._limits = limits

    async def run(self) -> None:
        """Write what is due, for ever."""
        is_swept = False
        while True:
            try:
                if not is_swept:
                    await self.sweep()
                    is_swept = True
                while await self.step():
                    pass
                await asyncio.sleep(LOOK_EVERY_S)
            except VolaryError as error:
                log.warning("the prediction log waits: %s", error.reason)
                await asyncio.sleep(RETRY_S)

    async def step(self, *, everything: bool = False) -> int:
        """Write each part that is due, or `everything`; return how many parts that were."""
        due = await self._due(everything=everything)
        for part in due:
            await self.write(part)
        for part in await self._crowded():
            await self.merge(part)
        return len(due)

    async def write(self, part: Part) -> int:
        """Turn what waits of a part into a file; return its rows."""
        async with self._database.transaction() as transaction:
            await _lock(transaction, part)
            found = await transaction.execute(
                sa.select(P.position, P.event)
                .where(P.project == part.project, P.model == part.model, P.day == part.day)
                .order_by(P.position)
                .limit(MAX_ROWS)
            )
            rows = found.all()
            if not rows:
                return 0
            path = self._new_path(part)
            await asyncio.to_thread(self._write_file, path, [row.event for row in rows])
            await self._enter(transaction, part, path, len(rows))
            # by position, one by one: another row may have come in between meanwhile
            written = sa.literal([row.position for row in rows], sa.ARRAY(sa.BigInteger))
            await transaction.execute(sa.delete(log_pending).where(P.position == sa.any_(written)))
            return len(rows)

    async def merge(self, part: Part) -> None:
        """Turn the files of a part into one."""
        async with self._database.transaction() as transaction:
            await _lock(transaction, part)
            files = await self._files(transaction, [part])
            if len(files) < 2:
                return
            path = self._new_path(part)
            rows = await asyncio.to_thread(self._merge_files, path, files)
            await transaction.execute(sa.delete(log_files).where(F.path.in_(files)))
            await self._enter(transaction, part, path, rows)
        for name in files:
            (self._folder / name).unlink(missing_ok=True)

    async def read(
        self, project: str, model: str, span: Span, columns: Sequence[str]
    ) -> pl.DataFrame:
        """Return the events of a window, written or waiting, in no order."""
        for _ in range(READS):
            try:
                return await self._read(project, model, span, columns)
            except FileNotFoundError:
                continue  # files were merged between the catalogue and the folder
        raise Unavailable("LOG_BUSY", "the prediction log is being rewritten", retry_after_s=1.0)

    async def _read(
        self, project: str, model: str, span: Span, columns: Sequence[str]
    ) -> pl.DataFrame:
        parts = [Part(project, model, day) for day in days_of(span)]
        async with self._database.read() as transaction:
            files = await self._files(transaction, parts)
            waiting = await transaction.scalars(
                sa.select(P.event).where(
                    P.project == project,
                    P.model == model,
                    P.event_us >= span.start_us,
                    P.event_us < span.end_us,
                )
            )
            events = list(waiting)
        return await asyncio.to_thread(self._read_all, files, events, span, columns)

    async def sweep(self) -> int:
        """Remove files that the catalogue does not name; return how many."""
        async with self._database.transaction() as transaction:
            await transaction.execute(sa.text(f"SELECT pg_advisory_xact_lock({SWEEP})"))
            named = set(await transaction.scalars(sa.select(F.path)))
            return await asyncio.to_thread(self._remove_unnamed, named)

    def _remove_unnamed(self, named: set[str]) -> int:
        removed = 0
        for path in self._folder.glob("project=*/model=*/day=*/*"):
            if str(path.relative_to(self._folder)) not in named:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    async def _due(self, *, everything: bool) -> list[Part]:
        oldest_us = self._clock.now_us() - int(self._limits.age_s * 1_000_000)
        count, since = sa.func.count(), sa.func.min(P.since_us)
        statement = sa.select(P.project, P.model, P.day).group_by(P.project, P.model, P.day)
        if not everything:
            statement = statement.having((count >= self._limits.rows) | (since <= oldest_us))
        async with self._database.read() as transaction:
            return [Part(*row) for row in await transaction.execute(statement)]

    async def _crowded(self) -> list[Part]:
        statement = (
            sa.select(F.project, F.model, F.day)
            .group_by(F.project, F.model, F.day)
            .having(sa.func.count() > self._limits.files)
            .having(sa.func.sum(F.rows) <= MAX_ROWS)
        )
        async with self._database.read() as transaction:
            return [Part(*row) for row in await transaction.execute(statement)]

    async def _files(self, transaction: Transaction, parts: Sequence[Part]) -> list[str]:
        if not parts:
            return []
        days = [part.day for part in parts]
        statement = sa.select(F.path).where(
            F.project == parts[0].project, F.model == parts[0].model, F.day.in_(days)
        )
        return list(await transaction.scalars(statement.order_by(F.path)))

    async def _enter(self, transaction: Transaction, part: Part, path: str, rows: int) -> None:
        await transaction.execute(
            sa.insert(log_files).values(
                path=path, project=part.project, model=part.model, day=part.day, rows=rows
            )
        )

    def _new_path(self, part: Part) -> str:
        return f"{part.folder}/{uuid.uuid4().hex}.parquet"

    def _write_file(self, name: str, events: Sequence[bytes]) -> None:
        self._put(name, table_of([Event.FromString(data) for data in events]))

    def _merge_files(self, name: str, files: Sequence[str]) -> int:
        merged = pa.concat_tables([self._open(each, None) for each in files])
        self._put(name, merged.sort_by("event_time"))
        return merged.num_rows

    def _put(self, name: str, table: pa.Table) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        with draft.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def _open(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        # one file, not a dataset: its folder's names are no columns of it
        return pq.ParquetFile(self._folder / name).read(
            columns=None if columns is None else list(columns)
        )

    def _read_all(
        self, files: Sequence[str], events: Sequence[bytes], span: Span, columns: Sequence[str]
    ) -> pl.DataFrame:
        tables = [self._open(name, [*columns, TIME]) for name in files]
        waiting = table_of([Event.FromString(data) for data in events])
        tables.append(waiting.select([*columns, TIME]))
        frame = pl.DataFrame(pa.concat_tables(tables))
        time_us = pl.col(TIME).dt.epoch("us")
        return frame.filter(time_us >= span.start_us, time_us < span.end_us).drop(TIME)


def table_of(events: Sequence[Event]) -> pa.Table:
    """Return events of predictions as rows of the log."""
    return pa.Table.from_pylist([_row(event) for event in events], schema=SCHEMA)


def _row(event: Event) -> dict[str, Any]:
    found = event.prediction
    return {
        "event_id": event.id,
        "prediction_id": found.prediction_id,
        "request_key": found.request_key,
        "version": found.version,
        "digest": found.digest,
        "tier": found.tier,
        "route": found.route,
        "shadow": found.shadow,
        "subject": found.subject,
        "entity_keys": sorted(found.entity_keys.items()),
        "event_time": to_us(event.event_time),
        "known_at": to_us(event.known_at),
        "feature_set": found.feature_set,
        "schema_hash": found.schema_hash,
        "features": list(found.features),
        "outputs": list(found.outputs),
        "confidence": found.confidence,
        "latency_us": duration_us(found.latency),
        "queue_us": duration_us(found.queue_time),
        "batch_size": found.batch_size,
        "code": found.code,
        "trace_id": found.trace_id,
        "replied_at": to_us(found.replied_at),
        "feature_watermark": to_us(found.feature_watermark),
    }


def day_of(event_us: int) -> str:
    """Return the UTC day of an instant, as `2013-05-01`."""
    return (EPOCH + timedelta(microseconds=event_us)).date().isoformat()


def days_of(span: Span) -> list[str]:
    """Return the UTC days that a window touches."""
    first = (EPOCH + timedelta(microseconds=span.start_us)).date()
    last = (EPOCH + timedelta(microseconds=span.end_us - 1)).date()
    return [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]


async def _lock(transaction: Transaction, part: Part) -> None:
    # a file that is being written is not named yet: no sweep meanwhile
    await transaction.execute(sa.text(f"SELECT pg_advisory_xact_lock_shared({SWEEP})"))
    await transaction.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
        {"key": f"volary.monitor.log.{part.folder}"},
    )
