"""Latest values: of what is known at an instant, the record that happened last.

Records are ordered by (`event_time`, `known_at`, `id`): a late record about an earlier time
does not hide a newer one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from volary_features.domain.cells import Cells, Ids
from volary_features.domain.instants import Instants, is_alive, is_known
from volary_features.domain.quanta import Numbers

Places = npt.NDArray[np.int64]
NOWHERE = -1


@dataclass(frozen=True)
class LatestLayout:
    """The form of a view's records: which columns they hold, as doubles, NaN for missing.

    A `timeless` view is of reference data that has no time of its own: its newest record
    stands at every instant.
    """

    columns: tuple[str, ...]
    is_timeless: bool = False

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The packed form of one record."""
        return np.dtype(
            [
                ("event", "<i8"),
                ("at", "<i8"),
                ("id", "<u8"),
                ("values", "<f8", (len(self.columns),)),
            ]
        )

    def records(
        self, event_us: Instants, known_us: Instants, ids: Ids, columns: Mapping[str, Numbers]
    ) -> Cells:
        """Return one cell a record, in the order given."""
        cells = np.zeros(len(known_us), dtype=self.dtype)
        cells["event"], cells["at"], cells["id"] = event_us, known_us, ids
        for place, column in enumerate(self.columns):
            # one NaN for all, so that equal values have equal bytes
            values = columns[column]
            cells["values"][:, place] = np.where(np.isnan(values), np.nan, values)
        return cells

    def merged(self, parts: Sequence[Cells]) -> Cells:
        """Return all records in order, each once."""
        cells = np.concatenate([np.empty(0, dtype=self.dtype), *parts])
        cells = cells[np.lexsort((cells["id"], cells["at"], cells["event"]))]
        if len(cells) < 2:
            return cells
        same = np.ones(len(cells) - 1, dtype=np.bool_)
        for name in ("event", "at", "id"):
            same &= cells[name][1:] == cells[name][:-1]
        return cells[~np.concatenate(([False], same))]

    def compacted(self, cells: Cells, oldest_us: int) -> Cells:
        """Return ordered records without those that no read from `oldest_us` on can choose."""
        if self.is_timeless:
            return cells[-1:]
        known = np.flatnonzero(is_known(cells["at"], np.full(len(cells), oldest_us)))
        if not len(known):
            return cells
        is_kept = cells["at"] >= oldest_us
        is_kept[known[-1]] = True
        # what happened before the one that stands at the oldest instant is never chosen again
        is_kept[: known[-1]] = False
        return cells[is_kept]

    def chosen(self, cells: Cells, bounds: Instants, asked_us: Instants) -> Places:
        """Return where each row's record lies in `cells`, NOWHERE for none.

        Row i's ordered records are in `bounds[i]:bounds[i + 1]`.
        """
        lengths = np.diff(bounds)
        places = np.arange(len(cells))
        if not self.is_timeless:
            is_in = is_known(cells["at"], np.repeat(asked_us, lengths))
            places = np.where(is_in, places, NOWHERE)
        found = np.full(len(lengths), NOWHERE, dtype=np.int64)
        has_cells = np.flatnonzero(lengths)
        if len(has_cells):
            found[has_cells] = np.maximum.reduceat(places, bounds[:-1][has_cells])
        return found

    def values(
        self, cells: Cells, places: Places, asked_us: Instants, ttl_us: int | None
    ) -> Numbers:
        """Return the values of chosen records, rows x columns, NaN where none stands."""
        found = np.full((len(places), len(self.columns)), np.nan)
        rows = np.flatnonzero(places != NOWHERE)
        if len(rows):
            standing = cells[places[rows]]
            is_there = is_alive(standing["event"], asked_us[rows], ttl_us)
            found[rows[is_there]] = standing["values"][is_there]
        return found

    def values_of_one(self, cells: Cells, asked_us: int, ttl_us: int | None) -> Numbers:
        """Return what `chosen` and `values` do for the ordered cells of a single row."""
        known = len(cells)
        if not self.is_timeless:
            places = np.flatnonzero(cells["at"] < asked_us)
            known = int(places[-1]) + 1 if len(places) else 0
        if known and (ttl_us is None or int(cells["event"][known - 1]) >= asked_us - ttl_us):
            return cells["values"][known - 1 : known].copy()
        return np.full((1, len(self.columns)), np.nan)
