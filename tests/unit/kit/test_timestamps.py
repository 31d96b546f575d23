"""Microseconds and the protobuf time types."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from volary_kit.errors import InvalidArgument
from volary_kit.timestamps import (
    YEAR_1_S,
    YEAR_9999_S,
    duration_from_us,
    duration_us,
    from_us,
    to_us,
)

MICROS = 1_000_000


@given(st.integers(YEAR_1_S * MICROS, YEAR_9999_S * MICROS))
def test_a_time_comes_back_exactly(time_us: int) -> None:
    assert to_us(from_us(time_us)) == time_us


@given(st.integers(-(10**15), 10**15))
def test_a_duration_comes_back_exactly(length_us: int) -> None:
    duration = duration_from_us(length_us)
    assert duration_us(duration) == length_us
    assert duration.ToMicroseconds() == length_us


@pytest.mark.parametrize(
    "timestamp",
    [
        Timestamp(seconds=YEAR_1_S - 1),
        Timestamp(seconds=YEAR_9999_S + 1),
        Timestamp(nanos=-1),
        Timestamp(nanos=10**9),
    ],
)
def test_a_time_outside_of_the_years_1_to_9999_is_refused(timestamp: Timestamp) -> None:
    with pytest.raises(InvalidArgument) as caught:
        to_us(timestamp, "event_time")
    assert set(caught.value.violations) == {"event_time"}


@pytest.mark.parametrize(
    "duration",
    [Duration(seconds=2**60), Duration(nanos=10**9), Duration(seconds=1, nanos=-1)],
)
def test_a_malformed_duration_is_refused(duration: Duration) -> None:
    with pytest.raises(InvalidArgument):
        duration_us(duration)
