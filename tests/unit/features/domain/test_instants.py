from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from volary_features.domain.instants import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    Ladder,
    Window,
    default_hop_us,
    is_alive,
    is_known,
    nesting_fault,
)

THREE_HOURS = Window(3 * HOUR_US, 5 * MINUTE_US)
DAY = Window(DAY_US, HOUR_US)
WEEK = Window(7 * DAY_US, DAY_US)
INSTANTS = st.integers(min_value=-(10**15), max_value=10**16)


def instants(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_what_becomes_known_at_exactly_the_asked_instant_is_not_known() -> None:
    assert is_known(instants(99, 100, 101), instants(100, 100, 100)).tolist() == [
        True,
        False,
        False,
    ]


def test_the_last_instant_of_a_life_counts() -> None:
    alive = is_alive(instants(39, 40, 41), instants(100, 100, 100), 60)
    assert alive.tolist() == [False, True, True]
    assert is_alive(instants(-(10**15)), instants(100), None).tolist() == [True]


@pytest.mark.parametrize(
    ("asked", "opens"),
    [
        (3 * HOUR_US, 0),
        (3 * HOUR_US + 5 * MINUTE_US - 1, 0),
        (3 * HOUR_US + 5 * MINUTE_US, 5 * MINUTE_US),
        (3 * HOUR_US - 1, -5 * MINUTE_US),  # floor, not towards zero
    ],
)
def test_the_tail_of_a_window_moves_in_whole_hops(asked: int, opens: int) -> None:
    assert THREE_HOURS.opens(instants(asked)).tolist() == [opens]


def test_hops_follow_the_length() -> None:
    assert default_hop_us(3 * HOUR_US) == 5 * MINUTE_US
    assert default_hop_us(12 * HOUR_US) == HOUR_US
    assert default_hop_us(7 * DAY_US) == HOUR_US
    assert default_hop_us(30 * DAY_US) == DAY_US


def test_hops_that_do_not_nest_are_named() -> None:
    assert nesting_fault([THREE_HOURS, DAY, WEEK]) is None
    assert nesting_fault([Window(HOUR_US, 7 * MINUTE_US), DAY]) is not None
    assert nesting_fault([Window(HOUR_US, 2 * HOUR_US)]) is not None


@given(
    at=st.integers(min_value=0, max_value=10 * DAY_US),
    oldest=st.integers(min_value=8 * DAY_US, max_value=12 * DAY_US),
    later=st.integers(min_value=0, max_value=9 * DAY_US),
    window=st.sampled_from([THREE_HOURS, DAY, WEEK]),
)
def test_no_window_of_any_later_read_cuts_a_tile(
    at: int, oldest: int, later: int, window: Window
) -> None:
    ladder = Ladder((THREE_HOURS, DAY, WEEK))
    starts, is_moved, is_kept = ladder.tiles(instants(at), oldest)
    asked = instants(oldest + later)
    is_in = window.opens(asked)[0] <= at < asked[0]
    if not is_kept[0]:
        assert not is_in
    elif is_moved[0]:
        assert (window.opens(asked)[0] <= starts[0] < asked[0]) == is_in
    else:
        assert starts[0] == at


def test_the_past_gets_coarser_and_ends() -> None:
    ladder = Ladder((THREE_HOURS, DAY, WEEK))
    oldest = 30 * DAY_US
    ages = [1, HOUR_US, 12 * HOUR_US, 5 * DAY_US, 20 * DAY_US]
    at = instants(*(oldest + HOUR_US, *(oldest - age for age in ages)))
    starts, is_moved, is_kept = ladder.tiles(at, oldest)
    assert is_moved.tolist() == [False, True, True, True, True, False]
    assert is_kept.tolist() == [True, True, True, True, True, False]
    assert starts[1] % (5 * MINUTE_US) == 0
    assert starts[3] % HOUR_US == 0
    assert starts[4] % DAY_US == 0
