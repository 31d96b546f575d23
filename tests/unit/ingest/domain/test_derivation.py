from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from volary_ingest.domain.derivation import Derivation, derived

ZONES = ["America/New_York", "America/Phoenix", "Pacific/Honolulu", "Europe/Oslo", "Asia/Kolkata"]


def derive(columns: dict[str, list[Any]], references: Any = None, **step: Any) -> list[Any]:
    made = derived(pl.DataFrame(columns), Derivation(name="made", **step), references or {})
    return made["made"].to_list()


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def test_shift_by_numbers_and_columns() -> None:
    columns = {"t": [at(2013, 1, 1), at(2013, 1, 1)], "m": [1.5, None]}
    assert derive(columns, shift={"time": "t", "hours": 1, "minutes": "m"}) == [
        at(2013, 1, 1, 1, 1, 30),
        None,
    ]


def test_the_clock_rolls_over_to_the_next_day() -> None:
    columns = {
        "clock": [2359, 1, 2400, 830],
        "zone": ["America/New_York"] * 4,
        "after": [at(2013, 1, 2, 4, 30)] * 4,  # 23:30 in New York
    }
    assert derive(columns, clock_after={"clock": "clock", "zone": "zone", "after": "after"}) == [
        at(2013, 1, 2, 4, 59),
        at(2013, 1, 2, 5, 1),
        at(2013, 1, 2, 5),
        at(2013, 1, 2, 13, 30),
    ]


def test_no_clock_no_zone_no_instant() -> None:
    columns = {
        "clock": [1275, None, 1200, 1200, 2401],
        "zone": ["Europe/Oslo", "Europe/Oslo", None, "Mars/Olympus", "Europe/Oslo"],
        "after": [at(2013, 1, 1)] * 5,
    }
    step = {"clock": "clock", "zone": "zone", "after": "after"}
    assert derive(columns, clock_after=step) == [None] * 5


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(ZONES),
    st.datetimes(datetime(2013, 1, 1), datetime(2013, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(0, 23),
    st.integers(0, 59),
)
def test_the_clock_after_is_what_the_standard_library_says(
    zone: str, after: datetime, hour: int, minute: int
) -> None:
    columns = {"clock": [hour * 100 + minute], "zone": [zone], "after": [after]}
    (made,) = derive(columns, clock_after={"clock": "clock", "zone": "zone", "after": "after"})
    local = after.astimezone(ZoneInfo(zone))
    expected = None
    for days in (0, 1):
        day = (local + timedelta(days=days)).date()
        reading = datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(zone))
        if expected is None and reading.astimezone(UTC) > after:
            expected = reading.astimezone(UTC)
    # in the hour that a clock shows twice, both readings of today may be over
    assert expected is None or made == expected


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        (datetime(2013, 7, 1, 12), at(2013, 7, 1, 16)),  # noqa: DTZ001
        (datetime(2013, 3, 10, 2, 30), at(2013, 3, 10, 7, 30)),  # noqa: DTZ001 - skipped
        (datetime(2013, 11, 3, 1, 30), at(2013, 11, 3, 5, 30)),  # noqa: DTZ001 - shown twice
        (datetime(2013, 3, 10, 5, 30), at(2013, 3, 10, 9, 30)),  # noqa: DTZ001 - 3 h after the gap
    ],
)
def test_local_times_at_the_edges_of_summer_time(local: datetime, utc: datetime) -> None:
    columns = {"t": [local], "z": ["America/New_York"]}
    assert derive(columns, local_to_utc={"time": "t", "zone": "z"}) == [utc]


def test_lookup_takes_the_first_row_of_a_key() -> None:
    hubs = pl.DataFrame({"hub": ["A", "A", None], "zone": ["x", "y", "z"]})
    step = {"source": "hubs", "key": "hub", "column": "zone", "by": "h"}
    columns = {"h": ["A", "B", None]}
    assert derive(columns, {"hubs": hubs}, lookup=step) == ["x", None, None]


def test_concat_and_compare_and_constant() -> None:
    columns = {"a": ["x", None], "n": [1, 2]}
    assert derive(columns, concat={"columns": ["a", "n"], "separator": "|"}) == ["x|1", None]
    assert derive(columns, compare={"left": "n", "op": "gt", "right": 1.5}) == [False, True]
    assert derive(columns, constant="2020-01-01T00:00:00Z", type="timestamp") == [
        at(2020, 1, 1),
        at(2020, 1, 1),
    ]


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"constant": 1},
        {"constant": 1, "type": "int64", "concat": {"columns": ["a"]}},
        {"concat": {"columns": []}},
        {"python": "1 + 1"},
    ],
)
def test_a_step_has_exactly_one_way(step: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Derivation(name="made", **step)
