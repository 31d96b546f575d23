from __future__ import annotations

from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volary_ingest.domain.intake import Intake, Window, take
from volary_ingest.domain.rows import decoded, encoded, text_frame
from volary_ingest.domain.source import Source

HUBS = {"hubs": pl.DataFrame({"hub": ["OSL"], "zone": ["Europe/Oslo"]})}
NOON_US = 1_577_880_000_000_000  # 2020-01-01T12:00:00Z


def taken(parcels: Source, rows: list[Any], window: Window | None = None) -> Intake:
    return take(text_frame(rows, parcels.spec), parcels.spec, HUBS, window)


def test_good_rows_are_typed_and_in_order_of_known_at(parcels: Source, new_parcel: Any) -> None:
    intake = taken(parcels, [new_parcel(2, day=2), new_parcel(1, day=1)])
    assert intake.accepted["number"].to_list() == [1, 2]
    assert intake.accepted.columns[:3] == ["record_id", "event_time", "known_at"]
    assert intake.accepted["zone"].to_list() == ["Europe/Oslo"] * 2


def test_every_fault_has_its_reason(parcels: Source, new_parcel: Any) -> None:
    rows = [
        new_parcel(1) | {"number": "NA"},
        new_parcel(2, sent="NA"),
        new_parcel(3, sent="2020-02-01T00:00:00Z"),
        new_parcel(4, weight="-1"),
        new_parcel(5, arrived="noon"),
        *[new_parcel(n) for n in range(10, 20)],
    ]
    intake = taken(parcels, rows)
    assert sorted(each.rule for each in intake.aside) == [
        "field_malformed",
        "key_missing",
        "known_before_event",
        "time_missing",
        "weight_plausible",
    ]
    assert intake.halt is None


def test_warnings_and_defaults_are_counted_and_let_the_row_in(
    parcels: Source, new_parcel: Any
) -> None:
    intake = taken(parcels, [new_parcel(1, weight="NA"), new_parcel(2, hub="BGO")])
    found = {outcome.rule: outcome.rows for outcome in intake.outcomes}
    assert (found["weight_given"], found["hub_known"]) == (1, 1)
    assert intake.defaulted == 1
    assert intake.accepted["weight"].to_list() == [1.5, 2.25]


def test_equal_copies_are_duplicates_and_others_conflict(parcels: Source, new_parcel: Any) -> None:
    rows = [new_parcel(1), new_parcel(1), new_parcel(1, weight="3"), new_parcel(2)]
    intake = taken(parcels, rows)
    assert (intake.accepted.height, intake.duplicates) == (2, 1)
    (conflict,) = intake.aside
    assert conflict.rule == "conflicting_record"
    assert conflict.record["weight"] == "3"


def test_a_missing_column_halts(parcels: Source) -> None:
    intake = take(pl.DataFrame({"number": ["1"]}), parcels.spec, HUBS)
    assert intake.halt is not None
    assert intake.halt.rule == "schema"
    assert "sent" in intake.halt.summary


def test_windows_split_the_rows_without_gap_or_overlap(parcels: Source, new_parcel: Any) -> None:
    rows = [
        new_parcel(1),
        new_parcel(2, day=2),
        new_parcel(3, day=2, arrived="NA"),
        new_parcel(4, sent="NA", arrived="NA"),
    ]
    parts = [
        taken(parcels, rows, Window(None, NOON_US)),
        taken(parcels, rows, Window(NOON_US, NOON_US + 1)),
        taken(parcels, rows, Window(NOON_US + 1, None)),
    ]
    assert [part.read for part in parts] == [1, 1, 2]
    assert [part.accepted.height for part in parts] == [0, 1, 1]


def test_a_separator_in_a_key_cannot_make_two_records_one(parcels: Source, new_parcel: Any) -> None:
    keys = parcels.spec.model_copy(update={"keys": ["hub", "zone"]})
    tables = {"hubs": pl.DataFrame({"hub": ["a|b", "a"], "zone": ["c", "b|c"]})}
    rows = [new_parcel(1, hub="a|b"), new_parcel(2, hub="a")]
    intake = take(text_frame(rows, keys), keys, tables)
    assert intake.accepted["record_id"].n_unique() == 2


def test_waiting_rows_come_back_bit_for_bit(parcels: Source, new_parcel: Any) -> None:
    rows = [new_parcel(n, weight=repr(0.1 * n)) for n in range(1, 50)] + [new_parcel(60, hub="BGO")]
    accepted = taken(parcels, rows).accepted
    assert decoded(list(encoded(accepted)), accepted.schema).equals(accepted)


TEXTS = st.one_of(
    st.none(),
    st.text(max_size=6),
    st.sampled_from(["", "NA", "1", "2", "OSL", "nan", "1e999", "2020-01-01T08:00:00Z"]),
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["number", "hub", "sent", "arrived", "weight", "x"]), TEXTS),
    max_size=12,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS)
def test_whatever_comes_the_counts_add_up(parcels: Source, rows: list[dict[str, Any]]) -> None:
    intake = taken(parcels, rows)
    assert intake.read == len(rows)
    assert intake.read == intake.accepted.height + intake.duplicates + len(intake.aside)
    assert intake.accepted["record_id"].is_unique().all()
    own = intake.accepted.select("record_id", "event_time", "known_at")
    assert own.null_count().row(0) == (0, 0, 0)
