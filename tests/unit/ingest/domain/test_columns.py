from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from volary_ingest.domain.columns import ColumnType, canonical, parsed


def parse(kind: ColumnType, *texts: str | None, time_format: str | None = None) -> list[object]:
    frame = pl.DataFrame({"c": texts}, schema={"c": pl.String})
    return frame.select(parsed("c", kind, time_format)).to_series().to_list()


def test_whole_numbers() -> None:
    texts = ("1", " -2 ", "+3", "4.0", "5.5", "x", "", None, "9223372036854775807", "1" * 30)
    whole: list[object] = [1, -2, 3, 4, None, None, None, None, 2**63 - 1, None]
    assert parse("int64", *texts) == whole


def test_numbers_are_finite() -> None:
    texts = ("1.5", "1e3", "-0", "nan", "inf", "-Infinity", "1e999", "0x10", None)
    assert parse("float64", *texts) == [1.5, 1000.0, 0.0, *[None] * 6]


def test_truth() -> None:
    assert parse("bool", "true", "FALSE", "1", "0", "yes", None) == [
        True, False, True, False, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2013-01-01T10:00:00Z", 10),
        ("2013-01-01T10:00:00+00:00", 10),
        ("2013-01-01T10:00:00.000Z", 10),
        ("2013-01-01T05:00:00-05:00", 10),
    ],
)
def test_instants_are_utc(text: str, hour: int) -> None:
    assert parse("timestamp", text) == [datetime(2013, 1, 1, hour, tzinfo=UTC)]


def test_an_instant_needs_a_zone_and_a_real_date() -> None:
    texts = ("2013-01-01T10:00:00", "2013-02-30T10:00:00Z", "2013-01-01", "soon", None)
    assert parse("timestamp", *texts) == [None] * 5


def test_a_local_time_has_no_zone() -> None:
    assert parse("local_timestamp", "2013-01-01 10:30", time_format="%Y-%m-%d %H:%M") == [
        datetime(2013, 1, 1, 10, 30)  # noqa: DTZ001 - local by its name
    ]


def test_the_one_text_of_a_value() -> None:
    moment = datetime(2013, 1, 1, 10, tzinfo=UTC)
    frame = pl.DataFrame(
        {"i": [7], "b": [True], "whole": [moment], "part": [moment.replace(microsecond=50)]}
    )
    texts = frame.select(canonical(name, dtype).alias(name) for name, dtype in frame.schema.items())
    assert texts.row(0) == ("7", "true", "2013-01-01T10:00:00Z", "2013-01-01T10:00:00.000050Z")
