"""Columns of a source as the features need them, from the Arrow table of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from volary_kit.errors import FailedPrecondition

from volary_features.domain.instants import Instants
from volary_features.domain.quanta import Numbers

RECORD_ID, EVENT, KNOWN = "record_id", "event_time", "known_at"
OWN_COLUMNS = (RECORD_ID, EVENT, KNOWN)


@dataclass(frozen=True)
class Records:
    """Records of one source that have a key: one entry a record in each column."""

    keys: pl.Series
    event_us: Instants
    known_us: Instants
    record_ids: pl.Series
    columns: dict[str, Numbers]

    def __len__(self) -> int:
        return len(self.keys)


def records_of(table: pl.DataFrame, key: str, columns: Sequence[str]) -> Records:
    """Return the records of a snapshot for one view; those without a key belong to nobody."""
    keyed = table.filter(pl.col(key).is_not_null()) if key in table.columns else table
    return Records(
        keys=key_column(keyed, key),
        event_us=instants(keyed, EVENT),
        known_us=instants(keyed, KNOWN),
        record_ids=_column(keyed, RECORD_ID).cast(pl.String),
        columns={name: number_column(keyed, name) for name in columns},
    )


def key_column(table: pl.DataFrame, name: str) -> pl.Series:
    """Return a column as the text of its keys."""
    column = _column(table, name)
    if column.dtype == pl.String or column.dtype.is_integer() or column.dtype == pl.Null:
        return column.cast(pl.String)
    raise FailedPrecondition(
        "COLUMN_IS_NO_KEY",
        f"column {name} is {column.dtype}: keys are text or integers",
        {"column": name},
    )


def number_column(table: pl.DataFrame, name: str) -> Numbers:
    """Return a column as doubles: true is 1, NaN where there is no finite number."""
    column = _column(table, name)
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise FailedPrecondition(
            "COLUMN_IS_NO_NUMBER",
            f"column {name} is {column.dtype}: features are numbers",
            {"column": name},
        )
    found = column.cast(pl.Float64).fill_null(np.nan).to_numpy().copy()
    found[~np.isfinite(found)] = np.nan
    return found


def instants(table: pl.DataFrame, name: str) -> Instants:
    """Return a column of instants as microseconds."""
    column = _column(table, name)
    if not isinstance(column.dtype, pl.Datetime):
        raise FailedPrecondition(
            "COLUMN_IS_NO_INSTANT",
            f"column {name} is {column.dtype}: an instant is wanted",
            {"column": name},
        )
    if column.null_count():
        raise FailedPrecondition(
            "INSTANT_MISSING", f"column {name} has rows without an instant", {"column": name}
        )
    return column.dt.epoch("us").to_numpy()


def _column(table: pl.DataFrame, name: str) -> pl.Series:
    if name not in table.columns:
        raise FailedPrecondition(
            "COLUMN_UNKNOWN", f"the source has no column {name}", {"column": name}
        )
    return table.get_column(name)
