"""The declared sources of examples/flights meet every trap of the data by a named rule."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from volary_ingest.connectors import read
from volary_ingest.domain.contract import NullRate, QuarantineRate, judged
from volary_ingest.domain.intake import Intake, take
from volary_ingest.domain.source import Source
from volary_kit.documents import read_documents

FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
ORDER = ("airports", "planes", "weather", "landings")


@pytest.fixture(scope="module")
def taken() -> dict[str, Intake]:
    done: dict[str, Intake] = {}
    for name in ORDER:
        (document,) = read_documents(FLIGHTS / f"source-{name}.yaml")
        source = document.check(Source)
        tables = {other: done[other].accepted for other in source.spec.references()}
        done[name] = take(read(source), source.spec, tables)
    return done


def rows_of(intake: Intake, rule: str) -> int:
    return next(outcome.rows for outcome in intake.outcomes if outcome.rule == rule)


@pytest.mark.parametrize(
    ("source", "read_rows", "accepted", "aside"),
    [
        ("airports", 1458, 1458, 0),
        ("planes", 3322, 3322, 0),
        ("weather", 26115, 26114, 1),
        ("landings", 336776, 327346, 9430),
    ],
)
def test_every_row_is_accounted_for(
    taken: dict[str, Intake], source: str, read_rows: int, accepted: int, aside: int
) -> None:
    intake = taken[source]
    assert intake.halt is None
    assert (intake.read, intake.accepted.height, len(intake.aside)) == (read_rows, accepted, aside)
    assert intake.duplicates == 0


@pytest.mark.parametrize(
    ("source", "rule", "rows"),
    [
        ("landings", "dest_without_airport", 7602),
        ("landings", "never_landed", 9430),
        ("landings", "tailnum_missing", 2512),
        ("landings", "zone_unknown", 0),
        ("airports", "zone_missing", 3),
        ("planes", "built_missing", 70),
        ("weather", "wind", 1),  # a wind of more than 1,000 miles an hour
    ],
)
def test_each_trap_has_its_rule(
    taken: dict[str, Intake], source: str, rule: str, rows: int
) -> None:
    assert rows_of(taken[source], rule) == rows


def test_no_pull_of_a_blizzard_is_taken_for_a_broken_feed() -> None:
    """Pulls begin and end anywhere: whatever batch of the true year is taken, none is halted."""
    (document,) = read_documents(FLIGHTS / "source-landings.yaml")
    source = document.check(Source)
    year = read(source).sort("time_hour", "minute")
    rules = [rule for rule in source.spec.contract if isinstance(rule, NullRate | QuarantineRate)]
    assert {rule.severity for rule in rules} == {"warn", "halt"}
    worst = 0.0
    for rows in (3_000, 5_000):
        for begin in range(0, year.height - rows, 250):
            batch = year.slice(begin, rows)
            never_landed = batch.get_column("arr_delay").null_count()
            found = [judged(rule, batch, never_landed) for rule in rules]
            assert not [each for each in found if each is not None and each.severity == "halt"]
            worst = max(worst, never_landed / rows)
    assert worst > 0.3


def test_tail_numbers_that_are_not_in_planes_are_noted(taken: dict[str, Intake]) -> None:
    assert rows_of(taken["landings"], "plane_unknown") == 52606


@pytest.mark.parametrize(
    ("flight", "departs", "lands"),
    [
        # one zone
        ("2013-01-01T10:00:00Z|B6|1806", (2013, 1, 1, 10, 59), (2013, 1, 1, 12, 2)),
        # New York 05:15 to Houston 08:19 Central, 11 minutes late
        ("2013-01-01T10:00:00Z|UA|1545", (2013, 1, 1, 10, 15), (2013, 1, 1, 14, 30)),
    ],
)
def test_a_landing_is_the_clock_of_the_destination_and_the_delay(
    taken: dict[str, Intake], flight: str, departs: tuple[int, ...], lands: tuple[int, ...]
) -> None:
    row = taken["landings"].accepted.row(by_predicate=_is(flight), named=True)
    assert row["event_time"] == row["departs_at"] == datetime(*departs, tzinfo=UTC)  # type: ignore[misc]
    assert row["known_at"] == row["lands_at"] == datetime(*lands, tzinfo=UTC)  # type: ignore[misc]
    assert row["record_id"] == row["flight_id"] == flight


def test_no_flight_takes_longer_than_a_day_or_lands_before_it_leaves(
    taken: dict[str, Intake],
) -> None:
    accepted = taken["landings"].accepted
    scheduled = (accepted["arrives_at"] - accepted["departs_at"]).dt.total_minutes()
    assert scheduled.min() > 15  # type: ignore[operator]
    assert scheduled.max() < 12 * 60  # type: ignore[operator]


def test_weather_is_known_when_its_hour_is_over(taken: dict[str, Intake]) -> None:
    accepted = taken["weather"].accepted
    delays = (accepted["known_at"] - accepted["event_time"]).dt.total_minutes()
    assert delays.unique().to_list() == [60]


def _is(flight: str) -> object:
    import polars as pl

    return pl.col("record_id") == flight
