"""The join against a scan by hand, and the promise that nothing known later leaks in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from volary_features.domain.feature_set import read_feature_set
from volary_features.domain.instants import HOUR_US, MINUTE_US
from volary_features.domain.vectors import VectorPlan
from volary_features.domain.view import read_view
from volary_features.offline.statistics import distribution_of
from volary_features.offline.training import Bounds, Spine, content_hash, joined, training_table
from volary_kit.errors import FailedPrecondition, InvalidArgument

from tests.unit.features.conftest import SET, VIEWS, rows_of

PLAN = VectorPlan(read_feature_set(SET), {each["name"]: read_view(each) for each in VIEWS})
START = 400_000 * HOUR_US
SPINE = Spine(
    "orders",
    "order",
    "event_time",
    "minutes",
    30,
    {"shop": "shop", "town": "town"},
    {"items": "items", "value": "value"},
)
EVERYTHING = Bounds(START, START + 100 * HOUR_US, START + 200 * HOUR_US)

Sale = tuple[int, str, float | None]
SALES = st.lists(
    st.tuples(
        st.integers(0, 60 * 40),
        st.sampled_from(["a", "b"]),
        st.one_of(st.none(), st.integers(-300, 300)),
    ),
    max_size=40,
)
ASKED = st.lists(st.integers(0, 60 * 45), min_size=1, max_size=8)


def sales_of(sales: list[Any]) -> pl.DataFrame:
    known = [START + minute * MINUTE_US for minute, _, _ in sales]
    return rows_of(
        {
            "record_id": [str(place) for place in range(len(sales))],
            "event_time": known,
            "known_at": known,
            "shop": [shop for _, shop, _ in sales],
            "amount": [None if amount is None else amount / 4 for _, _, amount in sales],
        }
    ).with_columns(pl.col("amount").cast(pl.Float64), pl.col("shop").cast(pl.String))


def tables_of(sales: list[Any]) -> dict[str, pl.DataFrame]:
    weather = {
        "record_id": ["1", "2", "3"],
        "event_time": [START, START + HOUR_US, START],
        "known_at": [START + HOUR_US, START + 2 * HOUR_US, START + 3 * HOUR_US],
        "town": ["x", "x", "x"],
        "temp": [1.0, 2.0, 3.0],
        "rain_mm": [0.5, None, 9.0],
    }
    towns = {"record_id": ["x"], "event_time": [0], "known_at": [0], "town": ["x"], "people": [5]}
    return {"sales": sales_of(sales), "weather": rows_of(weather), "towns": rows_of(towns)}


def vectors(tables: dict[str, pl.DataFrame], shops: list[str], asked: list[int]) -> Any:
    keys = {"shop": pl.Series(shops, dtype=pl.String), "town": pl.Series(["x"] * len(shops))}
    given_fields = {"items": np.full(len(asked), 2.0), "value": np.full(len(asked), 5.0)}
    found, _ = joined(PLAN, tables, keys, given_fields, np.array(asked, dtype=np.int64))
    return {name: found[:, place] for place, name in enumerate(PLAN.names)}


@given(SALES, ASKED)
def test_rolling_features_are_what_a_scan_finds(sales: list[Sale], minutes: list[int]) -> None:
    asked = [START + minute * MINUTE_US for minute in minutes]
    shops = ["a" if place % 2 else "b" for place in range(len(asked))]
    found = vectors(tables_of(sales), shops, asked)
    for row, (at, shop) in enumerate(zip(asked, shops, strict=True)):
        for window, length, hop in (("1h", HOUR_US, 5 * MINUTE_US), ("day", 24 * HOUR_US, HOUR_US)):
            opens = (at - length) // hop * hop
            inside = [a for m, s, a in sales if s == shop and opens <= START + m * MINUTE_US < at]
            values = [a for a in inside if a is not None]
            assert found[f"sales.count_{window}"][row] == len(inside)
            if values:
                # quarters have two decimals: exact in quanta of a hundredth
                assert found[f"sales.mean_{window}"][row] == sum(v * 25 for v in values) / (
                    len(values) * 100
                )
                assert found[f"sales.total_{window}"][row] == sum(values) / 4
                assert found[f"sales.least_{window}"][row] == min(values) / 4
                assert found[f"sales.most_{window}"][row] == max(values) / 4
            else:
                place = PLAN.names.index(f"sales.mean_{window}")
                assert found[f"sales.mean_{window}"][row] == PLAN.defaults[place]


@given(SALES, SALES, st.integers(0, 60 * 40))
def test_nothing_known_at_or_after_the_asked_time_changes_a_vector(
    before: list[Sale], after: list[Sale], minute: int
) -> None:
    asked = [START + minute * MINUTE_US] * 2
    past = [sale for sale in before if sale[0] < minute]
    future = [(max(at, minute), shop, amount) for at, shop, amount in after]
    alone = vectors(tables_of(past), ["a", "b"], asked)
    together = vectors(tables_of([*past, *future]), ["a", "b"], asked)
    for name, values in alone.items():
        np.testing.assert_array_equal(values, together[name])


@given(SALES, st.randoms(use_true_random=False))
def test_the_order_of_records_changes_no_bit(sales: list[Sale], chance: Any) -> None:
    asked = [START + 2_000 * MINUTE_US, START + 600 * MINUTE_US]
    shuffled = list(sales)
    chance.shuffle(shuffled)
    first, again = (vectors(tables_of(each), ["a", "b"], asked) for each in (sales, shuffled))
    for name, values in first.items():
        np.testing.assert_array_equal(values.view(np.int64), again[name].view(np.int64))


@pytest.mark.parametrize(
    ("asked", "temp"),
    [
        (START + HOUR_US, None),  # known at exactly that instant
        (START + HOUR_US + 1, 1.0),
        (START + 2 * HOUR_US, 1.0),
        (START + 2 * HOUR_US + 1, 2.0),
        (START + 3 * HOUR_US, 2.0),  # ttl of two hours after 1:00, its end counts
        (START + 3 * HOUR_US + 1, None),  # the late record about 0:00 is no newer
    ],
)
def test_the_latest_value_by_hand(asked: int, temp: float | None) -> None:
    found = vectors(tables_of([]), ["a"], [asked])["weather.temp"][0]
    expected = PLAN.defaults[PLAN.names.index("weather.temp")] if temp is None else temp
    assert found == expected


def test_a_key_that_is_missing_belongs_to_nobody() -> None:
    tables = tables_of([(1, "a", 4), (1, None, 400)])
    keys = {"shop": pl.Series(["a", None], dtype=pl.String), "town": pl.Series(["x", None])}
    fields = {"items": np.ones(2), "value": np.ones(2)}
    asked = np.full(2, START + HOUR_US, dtype=np.int64)
    found, is_present = joined(PLAN, tables, keys, fields, asked)
    count, people = (PLAN.names.index(name) for name in ("sales.count_1h", "town.people"))
    assert found[:, count].tolist() == [1.0, 0.0]
    assert is_present[:, people].tolist() == [True, False]


def orders(**more: list[Any]) -> pl.DataFrame:
    times = [START + hour * HOUR_US for hour in (1, 5, 9)]
    columns: dict[str, list[Any]] = {
        "record_id": ["1", "2", "3"],
        "order": ["o1", "o2", "o3"],
        "event_time": times,
        "known_at": [at + HOUR_US for at in times],
        "shop": ["a", "b", "a"],
        "town": ["x", "x", "z"],
        "items": [1, 2, 0],
        "value": [4.0, 5.0, 6.0],
        "minutes": [30.0, 31.0, 5.0],
    }
    return rows_of(columns | more)


def test_a_training_set_by_hand() -> None:
    tables = tables_of([(30, "a", 400)]) | {"orders": orders()}
    built = training_table(PLAN, SPINE, EVERYTHING, tables)
    rows = built.rows
    assert rows.columns == ["subject", "event_time", "known_at", *PLAN.names, "label"]
    assert rows["subject"].to_list() == ["o1", "o2", "o3"]
    assert rows["label"].to_list() == [0.0, 1.0, 0.0]  # above the threshold, not at it
    assert rows["sales.count_1h"].to_list() == [1.0, 0.0, 0.0]
    assert rows["basket.each"].to_list()[:2] == [4.0, 2.5]
    assert rows["basket.each"][2] == PLAN.defaults[PLAN.names.index("basket.each")]
    assert built.positive_share == pytest.approx(1 / 3)
    people = next(each for each in built.distributions if each.feature == "town.people")
    assert people.defaulted == 1


def test_bounds_hold_for_rows_and_for_what_is_known() -> None:
    tables = tables_of([]) | {"orders": orders()}
    bounds = Bounds(START, START + 9 * HOUR_US, START + 6 * HOUR_US)
    built = training_table(PLAN, SPINE, bounds, tables)
    assert built.rows["subject"].to_list() == ["o1"]  # o2's label is known at exactly the bound
    with pytest.raises(FailedPrecondition) as caught:
        training_table(PLAN, SPINE, Bounds(0, 1, START), tables)
    assert caught.value.reason == "TRAINING_SET_EMPTY"


def test_a_spine_that_lacks_something_is_told() -> None:
    spine = Spine("orders", "order", "event_time", "minutes", 30, {"shop": "shop"}, {})
    with pytest.raises(InvalidArgument) as caught:
        spine.check(PLAN)
    assert caught.value.metadata == {"missing": "town"}


def test_the_content_hash_sees_names_types_values_and_order() -> None:
    table = orders()
    variants = [
        table.reverse(),
        table.rename({"items": "things"}),
        table.with_columns(pl.col("items").cast(pl.Float64)),
        table.with_columns(pl.col("minutes") + 1e-9),
    ]
    hashes = {content_hash(each) for each in (table, *variants)}
    assert len(hashes) == 1 + len(variants)
    assert content_hash(orders()) == content_hash(table)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_a_distribution_counts_every_value_once(values: list[float]) -> None:
    found = distribution_of("x", np.array(values))
    assert int(found.counts.sum()) == len(values)
    assert (np.diff(found.edges) > 0).all()
    for place, edge in enumerate(found.edges.tolist()):
        assert int(found.counts[: place + 1].sum()) == sum(value <= edge for value in values)
    assert found.minimum == min(values)
    assert math.isclose(found.mean, sum(values) / len(values), abs_tol=1e-6)
