"""Immutable snapshots: a list of files, each named by its digest, under one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
from volary_kit.errors import FailedPrecondition

Columns = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a source: its `sha256:` digest, rows, bytes, batch and column types."""

    digest: str
    rows: int
    size_bytes: int
    batch: str
    columns: Columns


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The first files of a source; `known_until_us` is the exclusive bound it was taken with."""

    id: str
    files: Sequence[DataFile]
    known_until_us: int | None
    create_us: int

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(file.rows for file in self.files)


def content_hash(files: Sequence[DataFile]) -> str:
    """Return `sha256:<64 hex>` over the columns and digests of the files, in order."""
    content = [[sorted(file.columns.items()), file.digest] for file in files]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def columns_of(frame: pl.DataFrame) -> dict[str, str]:
    """Return the column types of a frame by name."""
    return {name: str(dtype) for name, dtype in frame.schema.items()}


def check_columns(earlier: Sequence[DataFile], columns: Columns) -> None:
    """Raise FailedPrecondition `SCHEMA_CHANGED` when a column would change its type.

    Columns may come and go: a row that lacks one reads as null.
    """
    for file in earlier:
        for name, kind in columns.items():
            before = file.columns.get(name, kind)
            if before != kind:
                raise FailedPrecondition(
                    "SCHEMA_CHANGED",
                    f"column {name} was {before} and would become {kind}: give it a new name",
                    {"column": name, "before": before, "after": kind},
                )
