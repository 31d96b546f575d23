"""From text as it came to records that are good, doubled or put aside, with the reasons counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from volary_ingest.domain.columns import INSTANT, canonical, parsed
from volary_ingest.domain.contract import (
    AnyRowRule,
    Outcome,
    RowRule,
    default_of,
    is_broken,
    judged,
    reason_of,
)
from volary_ingest.domain.derivation import References, derived
from volary_ingest.domain.source import SourceSpec

ROW, FIRST_BROKEN, REASON = "__row", "__rule", "__reason"
MALFORMED_MASK = "__malformed_"
KEY_SEPARATOR = "|"
DONE = {
    "warn": "noted",
    "default": "given a default",
    "quarantine": "put aside",
    "halt": "not allowed",
}
PLACE = ("known_at", "event_time")
# broken before any declared rule can be asked, and after all of them held
MALFORMED, NO_KEY, NO_TIME = "field_malformed", "key_missing", "time_missing"
KNOWN_TOO_EARLY, CONFLICT, SCHEMA = "known_before_event", "conflicting_record", "schema"


@dataclass(frozen=True, slots=True)
class Window:
    """Bounds of `known_at` in microseconds: `start` inclusive, `end` exclusive, None is open.

    A row without `known_at` is placed by its event time, without either at the very start: it
    cannot be accepted, and so it is put aside in exactly one window.
    """

    start_us: int | None = None
    end_us: int | None = None

    def holds(self) -> pl.Expr:
        """Return a mask of the rows within."""
        position = pl.coalesce(PLACE)
        inside = pl.lit(value=True)
        if self.start_us is not None:
            inside = inside & (position >= _instant(self.start_us)).fill_null(value=False)
        if self.end_us is not None:
            inside = inside & (position < _instant(self.end_us)).fill_null(value=True)
        return inside


@dataclass(frozen=True, slots=True)
class Aside:
    """A record that was put aside: the rule it broke first, why, and how it came.

    `digest` is the SHA-256 of rule and record: the same fault of the same record is one.
    """

    rule: str
    reason: str
    record: dict[str, str | None]
    digest: str


@dataclass(frozen=True)
class Intake:
    """What became of each row: `read = accepted + duplicates + aside`, unless a rule halted it.

    `accepted` has `record_id`, `event_time`, `known_at` and the kept columns, each record id
    once, in order of (`known_at`, `record_id`). `last_us` is the place of the last row read.
    """

    read: int
    accepted: pl.DataFrame
    duplicates: int = 0
    aside: Sequence[Aside] = ()
    defaulted: int = 0
    outcomes: Sequence[Outcome] = field(default=())
    last_us: int | None = None

    @property
    def halt(self) -> Outcome | None:
        """The first rule of severity `halt` that was broken."""
        return next((o for o in self.outcomes if o.severity == "halt" and o.rows > 0), None)


def take(
    raw: pl.DataFrame, spec: SourceSpec, references: References, window: Window | None = None
) -> Intake:
    """Parse, derive, check and separate the rows of a frame of text columns."""
    missing = [each.column for each in spec.fields if each.column not in raw.columns]
    if missing:
        text = f"columns are missing: {', '.join(missing)}"
        outcome = Outcome(SCHEMA, "halt", max(raw.height, 1), text)
        return Intake(raw.height, pl.DataFrame(), outcomes=[outcome])
    frame = _prepared(raw, spec, references).filter((window or Window()).holds())
    marked, outcomes = _marked(frame, spec, references)
    good, duplicates, conflicts = _separated(marked.filter(pl.col(FIRST_BROKEN).is_null()), spec)
    broken = marked.filter(pl.col(FIRST_BROKEN).is_not_null())
    aside = _aside(raw, pl.concat([broken, conflicts], how="vertical_relaxed"))
    return Intake(
        read=frame.height,
        accepted=good.select("record_id", "event_time", "known_at", *spec.kept()),
        duplicates=duplicates,
        aside=aside,
        defaulted=sum(_counts(frame, map(_mask, _defaults(spec)))),
        outcomes=[*outcomes, *_batch_outcomes(frame, spec, len(aside)), *_own_outcomes(aside)],
        last_us=frame.select(pl.coalesce(PLACE).dt.epoch("us").max()).item(),
    )


def _prepared(raw: pl.DataFrame, spec: SourceSpec, references: References) -> pl.DataFrame:
    """Return typed and derived columns, times and record id, and the masks on the way."""
    values = {each.name: parsed(each.column, each.type, each.format) for each in spec.fields}
    frame = raw.select(
        pl.int_range(pl.len()).alias(ROW),
        *(value.alias(name) for name, value in values.items()),
        *(
            (pl.col(each.column).is_not_null() & values[each.name].is_null()).alias(
                f"{MALFORMED_MASK}{each.name}"
            )
            for each in spec.fields
        ),
    )
    frame = _with_defaults(frame, spec, references, {each.name for each in spec.fields})
    for step in spec.derive:
        frame = derived(frame, step, references)
        frame = _with_defaults(frame, spec, references, {step.name})
    return frame.with_columns(
        _record_id(frame, spec.keys).alias("record_id"),
        pl.col(spec.event_time).alias("event_time"),
        pl.col(spec.known_at).alias("known_at"),
    )


def _with_defaults(
    frame: pl.DataFrame, spec: SourceSpec, references: References, columns: set[str]
) -> pl.DataFrame:
    """Apply the rules of severity `default` of columns that have just been made."""
    for rule in _defaults(spec):
        if rule.column in columns:
            dtype = frame.schema[rule.column]
            value = default_of(rule, dtype)
            mask = is_broken(rule, dtype, references) & value.is_not_null()
            better = pl.when(mask).then(value).otherwise(rule.column)
            frame = frame.with_columns(mask.alias(_mask(rule)), better.alias(rule.column))
    return frame


def _record_id(frame: pl.DataFrame, keys: Sequence[str]) -> pl.Expr:
    """Join the key columns' texts; with several, a separator within one is escaped."""
    texts = [canonical(key, frame.schema[key]) for key in keys]
    if len(texts) > 1:
        texts = [
            text.str.replace_all("\\", "\\\\", literal=True).str.replace_all(
                KEY_SEPARATOR, "\\" + KEY_SEPARATOR, literal=True
            )
            for text in texts
        ]
    return pl.concat_str(texts, separator=KEY_SEPARATOR)


def _marked(
    frame: pl.DataFrame, spec: SourceSpec, references: References
) -> tuple[pl.DataFrame, list[Outcome]]:
    """Mark each row with the rule that it broke first and say what each row rule found."""
    rules = _row_rules(spec)
    masked = frame.with_columns(
        is_broken(rule, frame.schema[rule.column], references).alias(_mask(rule))
        for rule in rules
        if rule.severity != "default"
    )
    outcomes = [
        _row_outcome(rule, rows)
        for rule, rows in zip(rules, _counts(masked, map(_mask, rules)), strict=True)
    ]
    faults = _faults(spec)
    names = [pl.when(mask).then(pl.lit(name)) for name, _, mask in faults]
    reasons = [pl.when(mask).then(pl.lit(reason)) for _, reason, mask in faults]
    marked = masked.with_columns(
        pl.coalesce(names).alias(FIRST_BROKEN), pl.coalesce(reasons).alias(REASON)
    )
    return marked, outcomes


def _faults(spec: SourceSpec) -> list[tuple[str, str, pl.Expr]]:
    """Return rule, reason and mask of all that puts a row aside; the first that holds counts."""
    event_time, known_at = pl.col("event_time"), pl.col("known_at")
    no_time = event_time.is_null() | known_at.is_null()
    return [
        *(
            (MALFORMED, f"{each.name} is no {each.type}", pl.col(f"{MALFORMED_MASK}{each.name}"))
            for each in spec.fields
            if each.malformed == "quarantine"
        ),
        *(
            (rule.name, reason_of(rule), pl.col(_mask(rule)))
            for rule in _row_rules(spec)
            if rule.severity == "quarantine"
        ),
        (NO_KEY, f"a key is missing: {', '.join(spec.keys)}", pl.col("record_id").is_null()),
        (NO_TIME, "event_time or known_at is missing", no_time),
        (KNOWN_TOO_EARLY, "it was known before it happened", known_at < event_time),
    ]


def _separated(good: pl.DataFrame, spec: SourceSpec) -> tuple[pl.DataFrame, int, pl.DataFrame]:
    """Return each record id once, the number of equal copies, and copies that differ."""
    ordered = good.sort("known_at", "record_id", ROW)
    first = ordered.filter(pl.col("record_id").is_first_distinct())
    if first.height == ordered.height:
        return ordered, 0, ordered.clear()
    again = ordered.filter(~pl.col("record_id").is_first_distinct())
    content = ["event_time", "known_at", *spec.kept()]
    same = again.join(first, on=["record_id", *content], how="semi", nulls_equal=True)
    differ = again.join(first, on=["record_id", *content], how="anti", nulls_equal=True)
    conflicts = differ.with_columns(
        pl.lit(CONFLICT).alias(FIRST_BROKEN),
        pl.lit("another record of the batch has the same id and other values").alias(REASON),
    )
    return first, same.height, conflicts


def _aside(raw: pl.DataFrame, broken: pl.DataFrame) -> list[Aside]:
    rows = raw[broken.get_column(ROW).to_list()].to_dicts() if broken.height else []
    marks = broken.select(FIRST_BROKEN, REASON).iter_rows()
    return [
        Aside(rule, reason, row, _digest(rule, row))
        for row, (rule, reason) in zip(rows, marks, strict=True)
    ]


def _digest(rule: str, record: dict[str, Any]) -> str:
    text = json.dumps([rule, record], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _batch_outcomes(frame: pl.DataFrame, spec: SourceSpec, aside: int) -> list[Outcome]:
    rules = [rule for rule in spec.contract if not isinstance(rule, RowRule)]
    return [
        judged(rule, frame, aside) or Outcome(rule.name, rule.severity, 0, "holds")
        for rule in rules
    ]


def _own_outcomes(aside: Sequence[Aside]) -> list[Outcome]:
    """Say what the rules found that no contract has to declare."""
    outcomes = []
    for name in (MALFORMED, NO_KEY, NO_TIME, KNOWN_TOO_EARLY, CONFLICT):
        rows = sum(each.rule == name for each in aside)
        if rows:
            outcomes.append(Outcome(name, "quarantine", rows, f"{rows} rows put aside"))
    return outcomes


def _row_outcome(rule: AnyRowRule, rows: int) -> Outcome:
    text = f"{rows} rows {DONE[rule.severity]}: {reason_of(rule)}" if rows else "holds"
    return Outcome(rule.name, rule.severity, rows, text)


def _row_rules(spec: SourceSpec) -> list[AnyRowRule]:
    return [rule for rule in spec.contract if isinstance(rule, RowRule)]


def _defaults(spec: SourceSpec) -> list[AnyRowRule]:
    return [rule for rule in _row_rules(spec) if rule.severity == "default"]


def _mask(rule: AnyRowRule) -> str:
    return f"__rule_{rule.name}"


def _counts(frame: pl.DataFrame, masks: Iterable[str]) -> list[int]:
    """Return how many rows each mask holds for."""
    sums = frame.select(pl.col(mask).sum() for mask in masks)
    return [int(total) for total in sums.row(0)] if sums.width else []


def _instant(time_us: int) -> pl.Expr:
    return pl.lit(time_us).cast(INSTANT)
