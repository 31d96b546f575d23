"""The point-in-time join: every spine row sees its source as it was known at the row's instant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from volary_features.domain.cells import LARGEST, SMALLEST, CellLayout, Totals, ids_of
from volary_features.domain.instants import LAST_US, Instants
from volary_features.domain.latest import NOWHERE
from volary_features.domain.plans import LatestPlan, RollingPlan
from volary_features.domain.quanta import MISSING, Numbers, Quanta, quantised
from volary_features.offline.records import Records

Codes = npt.NDArray[np.int64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Index:
    """Records in order of (key, known_at), found by key and instant.

    Instants are replaced by their rank among all, so that one integer orders both.
    """

    order: Places
    codes: Codes
    instants: Instants
    places: Places

    @classmethod
    def of(cls, codes: Codes, known_us: Instants) -> _Index:
        order = np.lexsort((known_us, codes))
        instants = np.unique(known_us)
        ranks = np.searchsorted(instants, known_us[order])
        return cls(order, codes[order], instants, codes[order] * (len(instants) + 1) + ranks)

    def first(self, codes: Codes, from_us: Instants) -> Places:
        """Return where the records of each key begin that were known at `from_us` or later."""
        ranks = np.searchsorted(self.instants, from_us)
        return np.searchsorted(self.places, codes * (len(self.instants) + 1) + ranks)


def _coded(records: Records, keys: pl.Series) -> tuple[Codes, Codes]:
    """Return keys of records and of the spine as numbers of one numbering; -1 is no key."""
    both = pl.concat([records.keys, keys.cast(pl.String)])
    codes = both.rank("dense").cast(pl.Int64).fill_null(0).to_numpy() - 1
    return codes[: len(records)], codes[len(records) :]


def rolling_values(
    plan: RollingPlan, records: Records, keys: pl.Series, asked_us: Instants
) -> Numbers:
    """Return rows x features of a rolling view, NaN for missing."""
    record_codes, codes = _coded(records, keys)
    index = _Index.of(record_codes, records.known_us)
    sums = _Sums(plan.layout, records, index.order)
    ends = index.first(codes, asked_us)
    totals = [
        sums.between(index.first(codes, window.opens(asked_us)), ends) for window in plan.windows
    ]
    return plan.values(totals)


class _Sums:
    """Running sums of each measure, from which any stretch is one subtraction."""

    def __init__(self, layout: CellLayout, records: Records, order: Places) -> None:
        self._has_extremes = layout.has_extremes
        self._count: list[Quanta] = []
        self._sum: list[Quanta] = []
        self._quanta: list[Quanta] = []
        for measure in layout.measures:
            quanta = quantised(records.columns[measure.column], measure.decimals)[order]
            self._count.append(_running(quanta != MISSING))
            self._sum.append(_running(np.where(quanta == MISSING, 0, quanta)))
            self._quanta.append(quanta)

    def between(self, first: Places, end: Places) -> Totals:
        """Return the totals of the records in `first:end` of each row."""
        extremes = self._quanta if self._has_extremes else []
        return Totals(
            rows=end - first,
            count=tuple(running[end] - running[first] for running in self._count),
            sum=tuple(running[end] - running[first] for running in self._sum),
            least=tuple(
                _extreme(np.minimum, np.where(each == MISSING, LARGEST, each), first, end, LARGEST)
                for each in extremes
            ),
            largest=tuple(  # `MISSING` is smaller than every quantum
                _extreme(np.maximum, each, first, end, SMALLEST) for each in extremes
            ),
        )


def _running(values: npt.NDArray[np.bool_] | Quanta) -> Quanta:
    return np.concatenate(([0], np.cumsum(values, dtype=np.int64))).astype(np.int64)


def _extreme(choose: np.ufunc, values: Quanta, first: Places, end: Places, neutral: int) -> Quanta:
    """Return the extreme of `values[first:end]` of each row, from two halves that may overlap.

    Level k holds the extremes of 2**k neighbours (a sparse table); a stretch is covered by the
    level of half its length, once from its start and once from its end.
    """
    found = np.full(len(first), neutral, dtype=np.int64)
    lengths = end - first
    level, covered = 0, values
    while True:
        rows = np.flatnonzero((lengths >= 1 << level) & (lengths < 2 << level))
        found[rows] = choose(covered[first[rows]], covered[end[rows] - (1 << level)])
        if not (lengths >= 2 << level).any():
            return found
        covered = choose(covered[: -(1 << level)], covered[1 << level :])
        level += 1


def latest_values(
    plan: LatestPlan, records: Records, keys: pl.Series, asked_us: Instants
) -> Numbers:
    """Return rows x features of a latest or lookup view, NaN for missing."""
    layout = plan.layout
    ids = ids_of(records.record_ids)
    cells = layout.records(records.event_us, records.known_us, ids, records.columns)
    by_event = np.lexsort((ids, records.known_us, records.event_us))
    cells = cells[by_event]
    record_codes, codes = _coded(records, keys)
    record_codes = record_codes[by_event]
    index = _Index.of(record_codes, cells["at"].astype(np.int64))
    # the later in order of events, of all that are known so far, within each key
    newest = np.maximum.accumulate(index.codes * (len(cells) + 1) + index.order)
    newest = newest - index.codes * (len(cells) + 1)
    begins = np.searchsorted(index.codes, codes)
    bound = np.full(len(asked_us), LAST_US) if layout.is_timeless else asked_us
    ends = index.first(codes, bound)
    chosen = np.full(len(asked_us), NOWHERE, dtype=np.int64)
    rows = np.flatnonzero(ends > begins)
    chosen[rows] = newest[ends[rows] - 1]
    return plan.values(layout.values(cells, chosen, asked_us, plan.spec.ttl))


def view_values(
    plan: RollingPlan | LatestPlan, records: Records, keys: pl.Series, asked_us: Instants
) -> Numbers:
    """Return rows x features of a view over a source."""
    join = rolling_values if isinstance(plan, RollingPlan) else latest_values
    return join(plan, records, keys, asked_us)  # pyright: ignore[reportArgumentType] - by kind
