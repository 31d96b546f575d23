"""Typed columns: text becomes numbers, instants and words, or is known to be malformed."""

from __future__ import annotations

from typing import Annotated, Literal

import polars as pl
from pydantic import StringConstraints

ColumnName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
ColumnType = Literal["string", "int64", "float64", "bool", "timestamp", "local_timestamp"]

INSTANT = pl.Datetime("us", "UTC")
DTYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "timestamp": INSTANT,
    "local_timestamp": pl.Datetime("us"),
}
TRUTH = {"true": True, "false": False, "1": True, "0": False, "t": True, "f": False}
WHOLE_NUMBER = r"^[+-]?\d+(\.0*)?$"
ISO_LOCAL = "%Y-%m-%dT%H:%M:%S%.f"
ISO_ZONED = "%Y-%m-%dT%H:%M:%S%.f%#z"


def parsed(column: str, kind: ColumnType, time_format: str | None) -> pl.Expr:
    """Return a text column as its type; null where the text does not say such a value."""
    text = pl.col(column).str.strip_chars()
    if kind == "string":
        return pl.col(column)
    if kind == "int64":
        whole = text.str.replace(r"\.0*$", "").str.strip_prefix("+")
        return pl.when(text.str.contains(WHOLE_NUMBER)).then(whole).cast(pl.Int64, strict=False)
    if kind == "float64":
        number = text.cast(pl.Float64, strict=False)
        return pl.when(number.is_finite()).then(number)
    if kind == "bool":
        return text.str.to_lowercase().replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    return _instant(text, kind, time_format)


def _instant(text: pl.Expr, kind: ColumnType, time_format: str | None) -> pl.Expr:
    if kind == "local_timestamp":
        return text.str.strptime(pl.Datetime("us"), time_format or ISO_LOCAL, strict=False)
    zoned = text.str.replace(r"[Zz]$", "+00:00") if time_format is None else text
    return zoned.str.to_datetime(
        time_format or ISO_ZONED, time_unit="us", strict=False
    ).dt.convert_time_zone("UTC")


def canonical(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as the one text that stands for each value, null for null.

    Instants are RFC 3339 in UTC, with a fraction only where there is one.
    """
    value = pl.col(column)
    if dtype == pl.Boolean:
        return pl.when(value).then(pl.lit("true")).when(~value).then(pl.lit("false"))
    if isinstance(dtype, pl.Datetime):
        seconds = value.dt.strftime("%Y-%m-%dT%H:%M:%S")
        fraction = pl.when(value.dt.microsecond() != 0).then(value.dt.strftime("%.6f"))
        return seconds + fraction.fill_null("") + pl.lit("Z")
    return value.cast(pl.String)
