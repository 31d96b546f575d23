"""Rows between frames, text and JSON: what a caller pushed, and what waits for its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from volary_ingest.domain.columns import INSTANT
from volary_ingest.domain.source import SourceSpec

# a field whose `from` is one of these takes the time that came beside a pushed record
BESIDE = ("@event_time", "@known_at")
TextRow = dict[str, str | None]


def text_frame(rows: Sequence[TextRow], spec: SourceSpec) -> pl.DataFrame:
    """Return pushed rows as the text columns that a connector would give.

    A declared column that a row lacks is missing; texts that the connector declares as
    missing are; columns that nobody declared are kept for the quarantine.
    """
    missing = set(spec.connector.missing)
    names = dict.fromkeys(field.column for field in spec.fields)
    names |= dict.fromkeys(name for row in rows for name in row)
    data = {
        name: [None if (value := row.get(name)) in missing else value for row in rows]
        for name in names
    }
    return pl.DataFrame(data, schema=dict.fromkeys(names, pl.String))


def encoded(frame: pl.DataFrame) -> Iterator[str]:
    """Yield each row as JSON, instants as microseconds; floats keep every bit."""
    plain = frame.with_columns(pl.col(INSTANT).dt.epoch("us"))
    return (json.dumps(row, separators=(",", ":")) for row in plain.iter_rows(named=True))


def decoded(rows: Sequence[str], schema: pl.Schema) -> pl.DataFrame:
    """Return encoded rows as a frame of a schema; columns that they lack are null."""
    values: list[dict[str, Any]] = [json.loads(row) for row in rows]
    stored = {name: pl.Int64() if dtype == INSTANT else dtype for name, dtype in schema.items()}
    data = {name: [row.get(name) for row in values] for name in schema}
    frame = pl.DataFrame(data, schema=stored)
    return frame.with_columns(
        pl.col(name).cast(INSTANT) for name, dtype in schema.items() if dtype == INSTANT
    )


def micros(frame: pl.DataFrame, column: str) -> list[int]:
    """Return the instants of a column without nulls as microseconds."""
    return frame.get_column(column).dt.epoch("us").to_list()
