"""The rules of a contract and what each says of a frame, one vectorised mask a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import polars as pl
from pydantic import Field, StringConstraints, model_validator
from volary_kit.documents import Strict

from volary_ingest.domain.columns import ColumnName
from volary_ingest.domain.derivation import References, Scalar

Severity = Literal["warn", "default", "quarantine", "halt"]
RuleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class ByColumn(Strict):
    """A default that depends on another column; a value that is not listed has none."""

    by: ColumnName
    values: dict[str, Scalar] = Field(min_length=1)


class RowRule(Strict):
    """What every rule about single rows has."""

    name: RuleName
    severity: Severity
    column: ColumnName
    reason: str | None = Field(default=None, max_length=500)
    value: Scalar | ByColumn | None = None

    @model_validator(mode="after")
    def _value_goes_with_default(self) -> Self:
        if (self.value is not None) != (self.severity == "default"):
            raise ValueError("value goes with severity default, and only with it")
        return self


class NotNull(RowRule):
    """The column has a value."""

    check: Literal["not_null"]


class Range(RowRule):
    """The value lies within bounds, both inclusive; null passes."""

    check: Literal["range"]
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        return self


class OneOf(RowRule):
    """The value is one of a list; null passes."""

    check: Literal["one_of"]
    values: list[Scalar] = Field(min_length=1, max_length=10_000)


class Matches(RowRule):
    """The text fits a regular expression (RE2 syntax, linear time); null passes."""

    check: Literal["matches"]
    pattern: str = Field(max_length=500)

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            pl.Series([""]).str.contains(self.pattern)
        except pl.exceptions.ComputeError as error:
            raise ValueError(f"pattern is no regular expression: {error}") from None
        return self


class NotBefore(RowRule):
    """The column is not below another one; null on either side passes."""

    check: Literal["not_before"]
    other: ColumnName


class ReferencesRule(RowRule):
    """The value is a key of another source; null passes."""

    check: Literal["references"]
    source: str
    key: ColumnName


class BatchRule(Strict):
    """What every rule about a batch as a whole has; below `min_rows` it says nothing."""

    name: RuleName
    severity: Literal["warn", "halt"]
    min_rows: int = Field(default=1, ge=0)
    reason: str | None = Field(default=None, max_length=500)


class NullRate(BatchRule):
    """The share of rows without a value is at most `max`."""

    check: Literal["null_rate"]
    column: ColumnName
    max: float = Field(ge=0, le=1)


class RowCount(BatchRule):
    """The batch has between `min` and `max` rows; an empty pull is not judged."""

    check: Literal["row_count"]
    min: int = Field(default=0, ge=0)
    max: int = Field(default=2**53, ge=0)


class QuarantineRate(BatchRule):
    """The share of rows that were put aside is at most `max`."""

    check: Literal["quarantine_rate"]
    max: float = Field(ge=0, le=1)


AnyRowRule = NotNull | Range | OneOf | Matches | NotBefore | ReferencesRule
AnyBatchRule = NullRate | RowCount | QuarantineRate
Rule = Annotated[AnyRowRule | AnyBatchRule, Field(discriminator="check")]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule found in one batch; `observed` and `bound` for rules with a statistic."""

    rule: str
    severity: Severity
    rows: int
    summary: str
    observed: float = 0.0
    bound: float = 0.0


def is_broken(rule: AnyRowRule, dtype: pl.DataType, references: References) -> pl.Expr:
    """Return a mask of the rows that break a rule on a column of that type, never null."""
    value = pl.col(rule.column)
    match rule:
        case NotNull():
            return value.is_null()
        case Range():
            return _outside(value, rule)
        case OneOf():
            allowed = pl.Series(rule.values, strict=False).cast(dtype)
            return (~value.is_in(allowed.implode())).fill_null(value=False)
        case Matches():
            return (~value.str.contains(rule.pattern)).fill_null(value=False)
        case NotBefore():
            return (value < pl.col(rule.other)).fill_null(value=False)
        case ReferencesRule():
            keys = references[rule.source].get_column(rule.key).drop_nulls().unique()
            return (~value.is_in(keys.implode())).fill_null(value=False)


def _outside(value: pl.Expr, rule: Range) -> pl.Expr:
    broken = pl.lit(value=False)
    if rule.min is not None:
        broken = broken | (value < rule.min)
    if rule.max is not None:
        broken = broken | (value > rule.max)
    return broken.fill_null(value=False)


def default_of(rule: AnyRowRule, dtype: pl.DataType) -> pl.Expr:
    """Return the value that replaces a broken one, null where the declaration has none."""
    if isinstance(rule.value, ByColumn):
        return (
            pl.col(rule.value.by)
            .cast(pl.String)
            .replace_strict(rule.value.values, default=None)
            .cast(dtype)
        )
    return pl.lit(rule.value).cast(dtype)


def reason_of(rule: AnyRowRule) -> str:
    """Return why a row that breaks the rule is put aside, in words."""
    if rule.reason is not None:
        return rule.reason
    match rule:
        case NotNull():
            return f"{rule.column} is missing"
        case Range():
            return f"{rule.column} is out of range"
        case OneOf():
            return f"{rule.column} is none of the allowed values"
        case Matches():
            return f"{rule.column} does not have the declared form"
        case NotBefore():
            return f"{rule.column} is before {rule.other}"
        case ReferencesRule():
            return f"{rule.column} is no {rule.key} of {rule.source}"


def judged(rule: AnyBatchRule, frame: pl.DataFrame, quarantined_rows: int) -> Outcome | None:
    """Return what a rule about the batch found, None when it holds or has too few rows."""
    if frame.height < max(rule.min_rows, 1):
        return None
    match rule:
        case NullRate():
            nulls = frame.get_column(rule.column).null_count()
            return _share(rule, nulls, frame.height, f"of {rule.column} is missing")
        case QuarantineRate():
            return _share(rule, quarantined_rows, frame.height, "of the rows were put aside")
        case RowCount():
            if rule.min <= frame.height <= rule.max:
                return None
            bound = rule.min if frame.height < rule.min else rule.max
            text = f"{frame.height} rows, declared are {rule.min} to {rule.max}"
            return Outcome(rule.name, rule.severity, frame.height, text, frame.height, bound)


def _share(rule: NullRate | QuarantineRate, rows: int, of: int, text: str) -> Outcome | None:
    share = rows / of
    if share <= rule.max:
        return None
    summary = f"{share:.2%} {text}, allowed are {rule.max:.2%}"
    return Outcome(rule.name, rule.severity, rows, summary, share, rule.max)
