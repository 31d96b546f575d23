"""Cells against sums by hand: whatever the order, the repetition or the resolution."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from volary_features.domain.cells import (
    LARGEST,
    SMALLEST,
    CellLayout,
    Measure,
    Totals,
    id_of,
    packed,
    unpacked,
)
from volary_features.domain.instants import DAY_US, HOUR_US, MINUTE_US, Ladder, Window
from volary_features.domain.quanta import MAX_QUANTUM, MISSING, number_of, numbers, quantised

LAYOUT = CellLayout((Measure("amount", 1),), has_extremes=True)
WINDOWS = (Window(HOUR_US, 5 * MINUTE_US), Window(DAY_US, HOUR_US))
LADDER = Ladder(WINDOWS)

Record = tuple[int, int, float | None]
RECORDS = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=3 * DAY_US // MINUTE_US).map(lambda m: m * MINUTE_US),
        st.integers(min_value=1, max_value=60),
        st.one_of(st.none(), st.integers(-5_000, 5_000).map(lambda v: v / 10)),
    ),
    max_size=60,
    unique_by=lambda record: record[1],
)


def cells_of(records: list[Record]) -> np.ndarray:
    return LAYOUT.records(
        np.array([at for at, _, _ in records], dtype=np.int64),
        np.array([place for _, place, _ in records], dtype=np.uint64),
        {"amount": numbers([value for _, _, value in records])},
    )


def totals(cells: np.ndarray, window: Window, asked: int) -> Totals:
    bounds = np.array([0, len(cells)], dtype=np.int64)
    return LAYOUT.totals(cells, bounds, [window], np.array([asked], dtype=np.int64))[0]


def by_hand(records: list[Record], window: Window, asked: int) -> tuple[int, int, int, int, int]:
    opens = (asked - window.length_us) // window.hop_us * window.hop_us
    inside = [value for at, _, value in records if opens <= at < asked]
    quanta = [round(value * 10) for value in inside if value is not None]
    return (
        len(inside),
        len(quanta),
        sum(quanta),
        min(quanta, default=LARGEST),
        max(quanta, default=SMALLEST),
    )


def flat(found: Totals) -> tuple[int, ...]:
    parts = (found.rows, found.count[0], found.sum[0], found.least[0], found.largest[0])
    return tuple(int(part[0]) for part in parts)


def test_a_window_by_hand_with_ties_at_both_ends() -> None:
    asked = 10 * HOUR_US
    window = WINDOWS[0]
    records: list[Record] = [
        (9 * HOUR_US - 1, 1, 1.0),  # just before it opens
        (9 * HOUR_US, 2, 2.0),  # at its opening
        (asked - 1, 3, 4.0),
        (asked, 4, 8.0),  # known at exactly the asked instant
        (asked - 1, 5, None),  # counted, without a value
    ]
    found = totals(LAYOUT.merged([cells_of(records)]), window, asked)
    assert flat(found) == (3, 2, 60, 20, 40)


@given(
    RECORDS,
    st.integers(min_value=DAY_US // MINUTE_US, max_value=4 * DAY_US // MINUTE_US),
    st.integers(min_value=0, max_value=DAY_US // MINUTE_US),
    st.sampled_from(WINDOWS),
)
def test_tiles_add_up_to_what_the_records_do(
    records: list[Record], oldest_minutes: int, later_minutes: int, window: Window
) -> None:
    oldest = oldest_minutes * MINUTE_US
    cells = LAYOUT.compacted(LAYOUT.merged([cells_of(records)]), LADDER, oldest)
    asked = oldest + later_minutes * MINUTE_US
    assert flat(totals(cells, window, asked)) == by_hand(records, window, asked)


@given(RECORDS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_parts_and_repetition_change_no_byte(
    records: list[Record], random: object, parts: int
) -> None:
    shuffled = [*records, *records[: len(records) // 2]]
    random.shuffle(shuffled)  # pyright: ignore[reportAttributeAccessIssue]
    state = cells_of([])
    for part in range(parts):
        state = LAYOUT.merged([state, cells_of(shuffled[part::parts])])
    assert packed(state) == packed(LAYOUT.merged([cells_of(records)]))


@given(RECORDS, st.lists(st.integers(0, 4 * DAY_US // MINUTE_US), min_size=2, max_size=6))
def test_compacting_in_steps_is_compacting_at_once(
    records: list[Record], minutes: list[int]
) -> None:
    steps = sorted(each * MINUTE_US for each in minutes)
    state = LAYOUT.merged([cells_of(records)])
    for oldest in steps:
        state = LAYOUT.compacted(state, LADDER, oldest)
    at_once = LAYOUT.compacted(LAYOUT.merged([cells_of(records)]), LADDER, steps[-1])
    asked = steps[-1]
    for window in WINDOWS:
        assert flat(totals(state, window, asked)) == flat(totals(at_once, window, asked))
    assert all(before <= after for before, after in pairwise(state["at"]))


def test_rows_of_many_entities_do_not_mix() -> None:
    first = packed(cells_of([(HOUR_US, 1, 1.0), (2 * HOUR_US, 2, 2.0)]))
    last = packed(cells_of([(HOUR_US, 3, 4.0)]))
    cells, bounds = unpacked([first, b"", last, first], LAYOUT.dtype)
    asked = np.array([3 * HOUR_US, 3 * HOUR_US, 3 * HOUR_US, HOUR_US + 1], dtype=np.int64)
    (found,) = LAYOUT.totals(cells, bounds, WINDOWS[1:], asked)
    assert found.sum[0].tolist() == [30, 0, 40, 10]
    assert found.rows.tolist() == [2, 0, 1, 1]


def test_sums_are_exact_where_doubles_are_not() -> None:
    values = [0.1] * 10
    assert sum(values) != 1.0
    quanta = quantised(numbers(values), 1)
    total = np.array([quanta.sum()])
    assert number_of(total, np.array([1]), 1).tolist() == [1.0]


def test_what_is_no_number_or_too_large_is_missing() -> None:
    given_values = [None, float("nan"), float("inf"), 10.0**12, True, 3, MAX_QUANTUM / 10]
    found = quantised(numbers(given_values), 1)
    assert found.tolist() == [MISSING, MISSING, MISSING, MISSING, 10, 30, MAX_QUANTUM]
    assert numbers([10**400]).tolist() != [0.0]


def test_ids_never_look_like_tiles() -> None:
    assert id_of("a") == id_of("a") != id_of("b")
    assert id_of("") != 0
