"""The closed vocabulary of derived columns: what a declared source may compute from its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal, Self
from zoneinfo import available_timezones

import polars as pl
from pydantic import Field, model_validator
from volary_kit.documents import Strict

from volary_ingest.domain.columns import DTYPES, ColumnName, ColumnType, canonical, parsed

References = Mapping[str, pl.DataFrame]
Scalar = str | int | float | bool
Amount = int | float | ColumnName
UNITS_US = {
    "days": 86_400_000_000,
    "hours": 3_600_000_000,
    "minutes": 60_000_000,
    "seconds": 1_000_000,
}
# long enough to step over any summer-time gap, short enough to meet no second change of offset
BEFORE_GAP = pl.duration(hours=3)


class Shift(Strict):
    """An instant moved by amounts, each a number or a numeric column."""

    time: ColumnName
    days: Amount = 0
    hours: Amount = 0
    minutes: Amount = 0
    seconds: Amount = 0


class ClockAfter(Strict):
    """The first instant after `after` at which a clock in `zone` reads HHMM; 2400 is midnight."""

    clock: ColumnName
    zone: ColumnName
    after: ColumnName


class LocalToUtc(Strict):
    """A local date and time in the zone that another column names.

    An hour that a clock shows twice means its first; an hour that it skips is read with the
    offset before the change.
    """

    time: ColumnName
    zone: ColumnName


class Lookup(Strict):
    """The value of `column` in the row of `source` whose `key` equals our column `by`."""

    source: str
    key: ColumnName
    column: ColumnName
    by: ColumnName


class Concat(Strict):
    """The texts of columns with a separator between; null when one is null."""

    columns: list[ColumnName] = Field(min_length=1)
    separator: str = Field(default="", max_length=8)


class Compare(Strict):
    """Whether a column stands in a relation to a constant; null for null."""

    left: ColumnName
    op: Literal["lt", "le", "gt", "ge", "eq", "ne"]
    right: Scalar


class Derivation(Strict):
    """One derived column: its name and exactly one way to make it."""

    name: ColumnName
    keep: bool = True
    shift: Shift | None = None
    clock_after: ClockAfter | None = None
    local_to_utc: LocalToUtc | None = None
    lookup: Lookup | None = None
    concat: Concat | None = None
    compare: Compare | None = None
    constant: Scalar | None = None
    type: ColumnType | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in OPERATIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(OPERATIONS)}")
        if (self.type is not None) != (given == ["constant"]):
            raise ValueError("type goes with constant, and only with it")
        return self

    @property
    def operation(self) -> Shift | ClockAfter | LocalToUtc | Lookup | Concat | Compare | Scalar:
        """The one way that is given."""
        return next(value for name in OPERATIONS if (value := getattr(self, name)) is not None)

    def inputs(self) -> set[str]:
        """Return the columns that must be there before."""
        match self.operation:
            case Shift() as it:
                amounts = {it.days, it.hours, it.minutes, it.seconds}
                return {it.time, *(each for each in amounts if isinstance(each, str))}
            case ClockAfter() as it:
                return {it.clock, it.zone, it.after}
            case LocalToUtc() as it:
                return {it.time, it.zone}
            case Lookup() as it:
                return {it.by}
            case Concat() as it:
                return set(it.columns)
            case Compare() as it:
                return {it.left}
            case _:
                return set()


OPERATIONS = ("shift", "clock_after", "local_to_utc", "lookup", "concat", "compare", "constant")


def derived(frame: pl.DataFrame, step: Derivation, references: References) -> pl.DataFrame:
    """Return the frame with one more column."""
    match step.operation:
        case Shift() as it:
            return frame.with_columns(_shifted(it).alias(step.name))
        case ClockAfter() as it:
            return _by_zone(frame, it.zone, lambda zone: _clock_after(it, zone), step.name)
        case LocalToUtc() as it:
            return _by_zone(frame, it.zone, lambda zone: _to_utc(pl.col(it.time), zone), step.name)
        case Lookup() as it:
            return _looked_up(frame, it, step.name, references)
        case Concat() as it:
            texts = [canonical(name, frame.schema[name]) for name in it.columns]
            return frame.with_columns(pl.concat_str(texts, separator=it.separator).alias(step.name))
        case Compare() as it:
            return frame.with_columns(_compared(it).alias(step.name))
        case value:
            return frame.with_columns(constant(value, step.type or "string").alias(step.name))


def constant(value: Scalar, kind: ColumnType) -> pl.Expr:
    """Return a declared value as a column of its type; instants are written as RFC 3339 text."""
    if kind in ("timestamp", "local_timestamp"):
        one = pl.DataFrame({"value": [str(value)]}).select(parsed("value", kind, None)).to_series()
        return pl.lit(one[0], dtype=DTYPES[kind])
    return pl.lit(value).cast(DTYPES[kind])


def _shifted(shift: Shift) -> pl.Expr:
    moved_us = pl.lit(0, dtype=pl.Int64)
    for unit, length_us in UNITS_US.items():
        amount = getattr(shift, unit)
        if isinstance(amount, str):
            moved_us = moved_us + (pl.col(amount) * length_us).round(0).cast(pl.Int64)
        elif amount:
            moved_us = moved_us + int(amount * length_us)
    return pl.col(shift.time) + pl.duration(microseconds=moved_us)


def _clock_after(step: ClockAfter, zone: str) -> pl.Expr:
    clock, after = pl.col(step.clock), pl.col(step.after)
    local = after.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    reading = pl.duration(hours=clock // 100 % 24, minutes=clock % 100)
    today = _to_utc(local.dt.truncate("1d") + reading, zone)
    tomorrow = _to_utc(local.dt.truncate("1d") + pl.duration(days=1) + reading, zone)
    is_clock = clock.is_between(0, 2400) & (clock % 100 < 60)
    return pl.when(is_clock).then(pl.when(today > after).then(today).otherwise(tomorrow))


def _to_utc(local: pl.Expr, zone: str) -> pl.Expr:
    there = local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    before = (local - BEFORE_GAP).dt.replace_time_zone(
        zone, ambiguous="earliest", non_existent="null"
    )
    gap = before.dt.convert_time_zone("UTC") + BEFORE_GAP
    return there.dt.convert_time_zone("UTC").fill_null(gap)


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())  # walks the file system: once is enough


def _by_zone(
    frame: pl.DataFrame, column: str, make: Callable[[str], pl.Expr], name: str
) -> pl.DataFrame:
    """Compute a column zone by zone: the engine wants a zone to be one for a whole column."""
    known = _zones()
    missing = pl.lit(None, dtype=DTYPES["timestamp"])
    parts = []
    for (zone,), part in frame.with_row_index("__place").group_by(column):
        value = make(zone) if zone in known else missing
        parts.append(part.select("__place", value.alias(name)))
    if not parts:
        return frame.with_columns(missing.alias(name))
    return frame.with_columns(pl.concat(parts).sort("__place").get_column(name))


def _looked_up(
    frame: pl.DataFrame, lookup: Lookup, name: str, references: References
) -> pl.DataFrame:
    table = references[lookup.source].select(
        pl.col(lookup.key).alias("__key"), pl.col(lookup.column).alias(name)
    )
    return frame.join(
        table.drop_nulls("__key").unique("__key", keep="first", maintain_order=True),
        left_on=lookup.by,
        right_on="__key",
        how="left",
        maintain_order="left",
    )


def _compared(compare: Compare) -> pl.Expr:
    left, right = pl.col(compare.left), pl.lit(compare.right)
    return getattr(left, compare.op)(right)
