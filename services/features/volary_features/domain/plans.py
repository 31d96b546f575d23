"""Views made ready to compute: from totals, chosen records and request fields to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from volary_features.domain.cells import CellLayout, Cells, EntityTotals, Measure, Totals
from volary_features.domain.expression import EVENT_TIME, Expression
from volary_features.domain.instants import Instants, Ladder, Window
from volary_features.domain.latest import LatestLayout
from volary_features.domain.quanta import Numbers, number_of, number_of_one
from volary_features.domain.view import LatestSpec, LookupSpec, RequestSpec, RollingSpec


@dataclass(frozen=True)
class RollingPlan:
    """How a rolling view's numbers come from the totals of its windows."""

    spec: RollingSpec
    has_watermark = True  # its records come by the stream

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The windows in order."""
        return tuple(each.window for each in self.spec.windows)

    @cached_property
    def ladder(self) -> Ladder:
        """The resolutions of its tiles."""
        return Ladder(self.windows)

    @cached_property
    def layout(self) -> CellLayout:
        """The form of its cells."""
        found = [
            Measure(feature.column, feature.decimals)
            for feature in self.spec.features
            if feature.column is not None
        ]
        extremes = any(feature.aggregate in ("min", "max") for feature in self.spec.features)
        return CellLayout(tuple(dict.fromkeys(found)), extremes)

    def values(self, totals: Sequence[Totals]) -> Numbers:
        """Return rows x features, NaN for missing, from the totals of each window in order."""
        columns = [
            self._column(feature, each)
            for feature in range(len(self.spec.features))
            for each in totals
        ]
        return np.column_stack(columns)

    def values_of_one(self, cells: Cells, asked_us: int) -> Numbers:
        """Return the one row that `values` has for the totals of an entity's ordered cells."""
        totals = self.layout.totals_of_one(cells, self.windows, asked_us)
        return np.array(
            [
                [
                    self._number(feature, each)
                    for feature in range(len(self.spec.features))
                    for each in totals
                ]
            ]
        )

    def _number(self, feature: int, totals: EntityTotals) -> float:
        spec, place = self.spec.features[feature], self._places[feature]
        if place is None:
            return float(totals.rows)
        count = totals.count[place]
        if spec.aggregate == "mean":
            return number_of_one(totals.sum[place], count, spec.decimals)
        quanta = {"sum": totals.sum, "min": totals.least, "max": totals.largest}[spec.aggregate]
        return number_of_one(quanta[place], min(count, 1), spec.decimals)

    @cached_property
    def _places(self) -> list[int | None]:
        """Which measure each feature is made of, None for a count of rows."""
        return [
            None
            if feature.column is None
            else self.layout.measures.index(Measure(feature.column, feature.decimals))
            for feature in self.spec.features
        ]

    def _column(self, feature: int, totals: Totals) -> Numbers:
        spec, place = self.spec.features[feature], self._places[feature]
        if place is None:
            return totals.rows.astype(np.float64)
        count = totals.count[place]
        if spec.aggregate == "mean":
            return number_of(totals.sum[place], count, spec.decimals)
        quanta = {"sum": totals.sum, "min": totals.least, "max": totals.largest}[spec.aggregate]
        return number_of(quanta[place], np.minimum(count, 1), spec.decimals)


@dataclass(frozen=True)
class LatestPlan:
    """How a latest or lookup view's numbers come from the record that stands."""

    spec: LatestSpec | LookupSpec

    @cached_property
    def layout(self) -> LatestLayout:
        """The form of its records."""
        return LatestLayout(tuple(self.spec.columns()), isinstance(self.spec, LookupSpec))

    @property
    def has_watermark(self) -> bool:
        """False for reference data, which no stream brings."""
        return not self.layout.is_timeless

    def values(self, columns: Numbers) -> Numbers:
        """Return rows x features from rows x columns."""
        return columns[:, self._places]

    @cached_property
    def _places(self) -> list[int]:
        """Which column each feature is."""
        return [self.layout.columns.index(feature.column) for feature in self.spec.features]


@dataclass(frozen=True)
class RequestPlan:
    """How a request view's numbers come from the fields of the request."""

    spec: RequestSpec

    @cached_property
    def expressions(self) -> tuple[Expression, ...]:
        """The features' expressions in order, each parsed once."""
        return tuple(Expression(each.expression) for each in self.spec.features)

    def values(self, fields: Mapping[str, Numbers], asked_us: Instants) -> Numbers:
        """Return rows x features, NaN for missing."""
        given = {**fields, EVENT_TIME: asked_us.astype(np.float64)}
        rows = len(asked_us)
        return np.column_stack([each.evaluate(given, rows) for each in self.expressions])


SourcedPlan = RollingPlan | LatestPlan
ViewPlan = SourcedPlan | RequestPlan


def plan_of(spec: RollingSpec | LatestSpec | LookupSpec | RequestSpec) -> ViewPlan:
    """Return the plan of a view."""
    if isinstance(spec, RollingSpec):
        return RollingPlan(spec)
    return RequestPlan(spec) if isinstance(spec, RequestSpec) else LatestPlan(spec)
