from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from volary_features.domain.latest import NOWHERE, LatestLayout
from volary_features.domain.quanta import numbers

LAYOUT = LatestLayout(("temp",))
TIMELESS = LatestLayout(("temp",), is_timeless=True)
Record = tuple[int, int, int, float | None]
RECORDS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 60), st.integers(1, 99), st.floats(-50, 50)),
    max_size=25,
    unique_by=lambda record: record[2],
)


def cells_of(layout: LatestLayout, records: list[Record]) -> np.ndarray:
    return layout.merged(
        [
            layout.records(
                np.array([each[0] for each in records], dtype=np.int64),
                np.array([each[1] for each in records], dtype=np.int64),
                np.array([each[2] for each in records], dtype=np.uint64),
                {"temp": numbers([each[3] for each in records])},
            )
        ]
    )


def value(layout: LatestLayout, cells: np.ndarray, asked: int, ttl: int | None = None) -> float:
    bounds = np.array([0, len(cells)], dtype=np.int64)
    instants = np.array([asked], dtype=np.int64)
    places = layout.chosen(cells, bounds, instants)
    return float(layout.values(cells, places, instants, ttl)[0, 0])


def test_a_late_record_about_an_earlier_time_hides_nothing() -> None:
    cells = cells_of(LAYOUT, [(10, 11, 1, 1.0), (5, 20, 2, 2.0)])
    assert value(LAYOUT, cells, 30) == 1.0


def test_a_record_is_seen_only_after_it_is_known() -> None:
    cells = cells_of(LAYOUT, [(10, 20, 1, 1.0), (15, 25, 2, 2.0)])
    assert math.isnan(value(LAYOUT, cells, 20))
    assert value(LAYOUT, cells, 21) == 1.0
    assert value(LAYOUT, cells, 25) == 1.0
    assert value(LAYOUT, cells, 26) == 2.0


def test_ttl_is_judged_against_the_asked_time_and_its_end_counts() -> None:
    cells = cells_of(LAYOUT, [(10, 11, 1, 1.0)])
    assert value(LAYOUT, cells, 40, ttl=30) == 1.0
    assert math.isnan(value(LAYOUT, cells, 41, ttl=30))
    assert value(LAYOUT, cells, 41, ttl=None) == 1.0


def test_a_missing_value_of_the_standing_record_is_missing() -> None:
    cells = cells_of(LAYOUT, [(10, 11, 1, 1.0), (12, 13, 2, None)])
    assert math.isnan(value(LAYOUT, cells, 40))


def test_reference_data_stands_at_every_instant() -> None:
    cells = cells_of(TIMELESS, [(100, 100, 1, 7.0)])
    assert value(TIMELESS, cells, 1) == 7.0
    assert TIMELESS.chosen(cells, np.array([0, 0]), np.array([1])).tolist() == [NOWHERE]


@given(RECORDS, st.integers(0, 70), st.integers(0, 30))
def test_what_compacting_drops_no_later_read_would_choose(
    records: list[Record], oldest: int, later: int
) -> None:
    cells = cells_of(LAYOUT, records)
    kept = LAYOUT.compacted(cells, oldest)
    asked = oldest + later
    known = [each for each in records if each[1] < asked]
    expected = max(known, default=None)
    found = value(LAYOUT, kept, asked)
    assert math.isnan(found) if expected is None else found == expected[3]
