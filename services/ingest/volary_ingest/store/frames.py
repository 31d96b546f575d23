"""Parquet files by digest, and the Arrow streams that are read from them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
from volary_kit.arrow_streams import ipc_chunks
from volary_kit.artifacts import ArtifactStore
from volary_kit.errors import DataLoss, InvalidArgument, NotFound

from volary_ingest.domain.columns import INSTANT
from volary_ingest.domain.snapshot import DataFile, Snapshot, columns_of

SLICE_ROWS = 16_384
ORDER = ("known_at", "record_id")
OWN = {"record_id": pl.String(), "event_time": INSTANT, "known_at": INSTANT}


class Frames:
    """Immutable Parquet files in a folder of this service's own.

    A file is complete and synced before its digest is returned; one that no catalog row names,
    after a crash, is harmless and is found again by the next writer of the same rows.
    """

    def __init__(self, folder: Path) -> None:
        self._store = ArtifactStore(folder)

    def write(self, frame: pl.DataFrame, batch: str) -> DataFile:
        """Write rows, ordered by (`known_at`, `record_id`); the same rows give the same bytes."""
        buffer = io.BytesIO()
        ordered = frame.sort(ORDER)
        ordered.write_parquet(buffer, compression="zstd", row_group_size=SLICE_ROWS * 8)
        data = buffer.getvalue()
        digest = self._store.put_bytes(data)
        return DataFile(digest, ordered.height, len(data), batch, columns_of(ordered))

    def read(
        self,
        snapshot: Snapshot,
        columns: Sequence[str] = (),
        known_from_us: int | None = None,
        known_until_us: int | None = None,
    ) -> pl.DataFrame:
        """Return rows of a snapshot in order of (`known_at`, `record_id`).

        The bounds on `known_at` are inclusive below and exclusive above. A snapshot without
        files has no rows of the columns that every record has. Raises InvalidArgument
        `COLUMN_UNKNOWN`, and DataLoss when a file is gone.
        """
        known = _columns(snapshot)
        for column in columns if snapshot.files else ():
            if column not in known:
                raise InvalidArgument(
                    "COLUMN_UNKNOWN",
                    f"the snapshot has no column {column}",
                    {"column": column},
                    field="columns",
                )
        if not snapshot.files:
            return pl.DataFrame(schema=OWN)
        parts = [pl.scan_parquet(self._path(file)) for file in snapshot.files]
        rows = pl.concat(parts, how="diagonal").filter(_bounds(known_from_us, known_until_us))
        return rows.sort(ORDER).select(columns or list(known)).collect()

    def _path(self, file: DataFile) -> Path:
        try:
            return self._store.path(file.digest)
        except NotFound:
            raise DataLoss(
                "SNAPSHOT_FILE_LOST", f"file {file.digest} is gone", {"digest": file.digest}
            ) from None


def arrow_chunks(frame: pl.DataFrame) -> Iterator[bytes]:
    """Yield a frame as one Arrow IPC stream in pieces of at most 1 MiB."""
    return ipc_chunks(_plain(frame.to_arrow()), slice_rows=SLICE_ROWS)


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with the string type that every Arrow reader has."""
    fields = [
        field.with_type(pa.string())
        if pa.types.is_large_string(field.type) or pa.types.is_string_view(field.type)
        else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _columns(snapshot: Snapshot) -> dict[str, str]:
    known: dict[str, str] = {}
    for file in snapshot.files:
        known |= file.columns
    return known


def _bounds(known_from_us: int | None, known_until_us: int | None) -> pl.Expr:
    inside = pl.lit(value=True)
    if known_from_us is not None:
        inside = inside & (pl.col("known_at") >= pl.lit(known_from_us).cast(INSTANT))
    if known_until_us is not None:
        inside = inside & (pl.col("known_at") < pl.lit(known_until_us).cast(INSTANT))
    return inside
