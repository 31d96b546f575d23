"""Training sets: spine rows, each with the vector as of its own instant, and its label."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
from volary_kit.errors import FailedPrecondition, InvalidArgument

from volary_features.domain.instants import Instants
from volary_features.domain.plans import RequestPlan
from volary_features.domain.quanta import Numbers
from volary_features.domain.vectors import VectorPlan
from volary_features.offline.join import view_values
from volary_features.offline.records import (
    KNOWN,
    OWN_COLUMNS,
    instants,
    key_column,
    number_column,
    records_of,
)
from volary_features.offline.statistics import Distribution, distribution_of

SUBJECT, EVENT, LABEL = "subject", "event_time", "label"
INSTANT = pl.Datetime("us", "UTC")
Tables = Mapping[str, pl.DataFrame]


@dataclass(frozen=True)
class Spine:
    """What to predict for: which rows of which source, when, by which keys, with which truth."""

    source: str
    subject_column: str
    time_column: str
    label_column: str
    label_threshold: float
    entity_columns: Mapping[str, str]
    request_columns: Mapping[str, str]

    def check(self, plan: VectorPlan) -> None:
        """Raise InvalidArgument when the spine lacks what the set asks for."""
        for field_name, wanted, given in (
            ("spine.entity_columns", plan.entities, self.entity_columns),
            ("spine.request_columns", plan.request_fields, self.request_columns),
        ):
            for name in wanted:
                if name not in given:
                    raise InvalidArgument(
                        "SPINE_INCOMPLETE",
                        f"the set needs {name}: name its column",
                        {"missing": name},
                        field=field_name,
                    )

    def columns(self) -> set[str]:
        """Return the columns that are read of the spine's source."""
        named = {self.subject_column, self.time_column, self.label_column}
        return named | set(self.entity_columns.values()) | set(self.request_columns.values())


@dataclass(frozen=True)
class Bounds:
    """Which rows: `start <= time < end`, and nothing that was known at `known_until` or later."""

    start_us: int
    end_us: int
    known_until_us: int


@dataclass(frozen=True)
class TrainingTable:
    """A training set: its rows, their content hash and the distribution of each column."""

    rows: pl.DataFrame
    content_hash: str
    positive_share: float
    distributions: list[Distribution] = field(repr=False)


def columns_by_source(plan: VectorPlan, spine: Spine | None = None) -> dict[str, list[str]]:
    """Return the columns that a join reads, by source."""
    found: dict[str, set[str]] = {}
    for view in plan.sourced.values():
        found.setdefault(view.spec.source, set()).update({view.spec.key, *view.spec.columns()})
    if spine is not None:
        found.setdefault(spine.source, set()).update(spine.columns())
    return {
        source: [*OWN_COLUMNS, *sorted(names - set(OWN_COLUMNS))] for source, names in found.items()
    }


def training_table(plan: VectorPlan, spine: Spine, bounds: Bounds, tables: Tables) -> TrainingTable:
    """Return the training set of a set over tables; raise FailedPrecondition when it is empty."""
    known = {name: _known(table, bounds.known_until_us) for name, table in tables.items()}
    rows = _spine_rows(known[spine.source], spine, bounds)
    if rows.is_empty():
        raise FailedPrecondition("TRAINING_SET_EMPTY", "no row with a label lies within the bounds")
    asked_us = instants(rows, spine.time_column)
    keys = {name: key_column(rows, column) for name, column in spine.entity_columns.items()}
    given = {name: number_column(rows, column) for name, column in spine.request_columns.items()}
    vectors, is_present = joined(plan, known, keys, given, asked_us)
    labels = (number_column(rows, spine.label_column) > spine.label_threshold).astype(np.float64)
    table = pl.DataFrame(
        {
            SUBJECT: rows.get_column(spine.subject_column).cast(pl.String),
            EVENT: rows.get_column(spine.time_column).cast(INSTANT),
            KNOWN: rows.get_column(KNOWN).cast(INSTANT),
            **_feature_columns(plan, vectors),
            LABEL: labels,
        }
    )
    return TrainingTable(
        rows=table,
        content_hash=content_hash(table),
        positive_share=float(labels.mean()),
        distributions=_distributions(plan, vectors, is_present, labels),
    )


def joined(
    plan: VectorPlan,
    tables: Tables,
    keys: Mapping[str, pl.Series],
    given: Mapping[str, Numbers],
    asked_us: Instants,
) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """Return vectors as of the instants asked for, and which numbers are not defaults."""
    values: dict[str, Numbers] = {}
    for name, view in plan.plans.items():
        if isinstance(view, RequestPlan):
            values[name] = view.values(given, asked_us)
        else:
            spec = view.spec
            records = records_of(tables[spec.source], spec.key, spec.columns())
            values[name] = view_values(view, records, keys[spec.entity], asked_us)
    return plan.assembled(values, len(asked_us))


def content_hash(table: pl.DataFrame) -> str:
    """Return the SHA-256 over names, types and values of a table, in order."""
    digest = hashlib.sha256()
    for column in table.iter_columns():
        digest.update(f"{column.name}\0{column.dtype}\0{len(column)}\0".encode())
        if column.dtype == pl.String:
            texts = [text.encode() for text in column.to_list()]
            digest.update(np.array([len(text) for text in texts], dtype="<i8").tobytes())
            digest.update(b"".join(texts))
        else:
            digest.update(column.to_physical().to_numpy().tobytes())
    return digest.hexdigest()


def _known(table: pl.DataFrame, until_us: int) -> pl.DataFrame:
    until = pl.lit(until_us).cast(INSTANT)
    return table.filter(pl.col(KNOWN) < until)


def _spine_rows(table: pl.DataFrame, spine: Spine, bounds: Bounds) -> pl.DataFrame:
    """Return labelled rows within the bounds, in order of time, then subject."""
    number_column(table, spine.label_column)
    instants(table, spine.time_column)
    time = pl.col(spine.time_column)
    start, end = (pl.lit(each).cast(INSTANT) for each in (bounds.start_us, bounds.end_us))
    there = pl.col(spine.label_column).is_not_null() & pl.col(spine.subject_column).is_not_null()
    return table.filter((time >= start) & (time < end) & there).sort(
        spine.time_column, spine.subject_column
    )


def _feature_columns(plan: VectorPlan, vectors: Numbers) -> dict[str, pl.Series]:
    narrow = {m.name for m in plan.feature_set.spec.features if m.dtype == "float32"}
    return {
        name: pl.Series(vectors[:, place], dtype=pl.Float32 if name in narrow else pl.Float64)
        for place, name in enumerate(plan.names)
    }


def _distributions(
    plan: VectorPlan, vectors: Numbers, is_present: npt.NDArray[np.bool_], labels: Numbers
) -> list[Distribution]:
    missing = (~is_present).sum(axis=0)
    found = [
        distribution_of(name, vectors[:, place], int(missing[place]))
        for place, name in enumerate(plan.names)
    ]
    return [*found, distribution_of(LABEL, labels)]
