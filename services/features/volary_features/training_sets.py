"""Training sets: built once for the same inputs, kept as Parquet by digest, read in chunks."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl
from volary.features.v1.feature_pb2 import ReferenceDistribution, TrainingSet
from volary_kit.arrow_streams import ipc_chunks
from volary_kit.artifacts import ArtifactStore
from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.timestamps import from_us

from volary_features.definitions import ResolvedSet
from volary_features.offline.statistics import Distribution
from volary_features.offline.training import (
    EVENT,
    INSTANT,
    Bounds,
    Spine,
    TrainingTable,
    columns_by_source,
    training_table,
)
from volary_features.snapshots import Snapshots
from volary_features.store import trainings

SLICE_ROWS = 4_096
Progress = Callable[[str, int], Awaitable[None]]


@dataclass(frozen=True)
class Order:
    """A training set to build."""

    resolved: ResolvedSet
    spine: Spine
    bounds: Bounds
    snapshots: Mapping[str, str]


class TrainingSets:
    """Builds and reads training sets."""

    def __init__(
        self, database: Database, snapshots: Snapshots, files: ArtifactStore, clock: Clock
    ) -> None:
        self._database = database
        self._snapshots = snapshots
        self._files = files
        self._clock = clock

    async def build(self, order: Order, progress: Progress) -> TrainingSet:
        """Join, store and return a training set; the same inputs give the same one."""
        plan, project = order.resolved.plan, order.resolved.project
        order.spine.check(plan)
        await progress("reading snapshots", 0)
        columns = columns_by_source(plan, order.spine)
        tables = await self._snapshots.tables(
            project, columns, order.snapshots, order.bounds.known_until_us
        )
        await progress("joining", sum(len(each.rows) for each in tables.values()))
        rows = {name: each.rows for name, each in tables.items()}
        table = await asyncio.to_thread(training_table, plan, order.spine, order.bounds, rows)
        await progress("storing", len(table.rows))
        digest = await asyncio.to_thread(self._write, table.rows)
        message = _message(order, table, [tables[name].snapshot for name in sorted(tables)])
        message.create_time.CopyFrom(from_us(self._clock.now_us()))
        async with self._database.transaction() as transaction:
            await trainings.add(
                transaction,
                project=project,
                training_set=table.content_hash,
                digest=digest,
                body=message.SerializeToString(),
            )
            row = await trainings.get(transaction, project, table.content_hash)
        return TrainingSet.FromString(row.body)

    def _write(self, rows: pl.DataFrame) -> str:
        buffer = io.BytesIO()
        rows.write_parquet(buffer, compression="zstd")
        return self._files.put_bytes(buffer.getvalue())

    async def chunks(
        self, digest: str, start_us: int | None, end_us: int | None
    ) -> AsyncIterator[bytes]:
        """Yield the rows with start <= event time < end, as one Arrow IPC stream in pieces."""
        rows = await asyncio.to_thread(self._read, digest, start_us, end_us)
        pieces = _arrow_chunks(rows)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    def _read(self, digest: str, start_us: int | None, end_us: int | None) -> pl.DataFrame:
        rows = pl.scan_parquet(self._files.path(digest))
        if start_us is not None:
            rows = rows.filter(pl.col(EVENT) >= pl.lit(start_us).cast(INSTANT))
        if end_us is not None:
            rows = rows.filter(pl.col(EVENT) < pl.lit(end_us).cast(INSTANT))
        return rows.collect()


def _message(order: Order, table: TrainingTable, snapshots: list[str]) -> TrainingSet:
    resolved, bounds = order.resolved, order.bounds
    return TrainingSet(
        name=f"projects/{resolved.project}/trainingSets/{table.content_hash}",
        feature_set=resolved.label,
        schema_hash=resolved.plan.schema_hash,
        snapshots=snapshots,
        content_hash=table.content_hash,
        rows=len(table.rows),
        start_time=from_us(bounds.start_us),
        end_time=from_us(bounds.end_us),
        known_until=from_us(bounds.known_until_us),
        positive_share=table.positive_share,
        distributions=[_distribution(each) for each in table.distributions],
    )


def _distribution(found: Distribution) -> ReferenceDistribution:
    return ReferenceDistribution(
        feature=found.feature,
        edges=found.edges.tolist(),
        counts=found.counts.tolist(),
        defaulted=found.defaulted,
        mean=found.mean,
        standard_deviation=found.standard_deviation,
        minimum=found.minimum,
        maximum=found.maximum,
    )


def _arrow_chunks(rows: pl.DataFrame) -> Iterator[bytes]:
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    return ipc_chunks(table, slice_rows=SLICE_ROWS)
