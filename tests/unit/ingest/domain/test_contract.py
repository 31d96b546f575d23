from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError
from volary_ingest.domain.contract import Rule, default_of, is_broken, judged

RULE: TypeAdapter[Any] = TypeAdapter(Rule)
OK = [False, False]
IN_HUBS = {"check": "references", "source": "hubs", "key": "hub"}
REFERENCES = {"hubs": pl.DataFrame({"hub": ["A", "B"]})}


def rule(**fields: Any) -> Any:
    return RULE.validate_python({"name": "r", "severity": "quarantine"} | fields)


@pytest.mark.parametrize(
    ("fields", "values", "broken"),
    [
        ({"check": "not_null"}, [1, None], [False, True]),
        ({"check": "range", "min": 0, "max": 2}, [-1, 0, 2, 2.1, None], [True, *OK, True, False]),
        ({"check": "range", "min": 0}, [-1.0, 1e9], [True, False]),
        ({"check": "one_of", "values": ["A"]}, ["A", "B", None], [False, True, False]),
        ({"check": "one_of", "values": [1.0, 2.0]}, [1, 3], [False, True]),
        ({"check": "matches", "pattern": "^N[0-9]+$"}, ["N12", "12", None], [False, True, False]),
        (IN_HUBS, ["A", "C", None], [False, True, False]),
    ],
)  # fmt: skip
def test_which_rows_break_a_rule(
    fields: dict[str, Any], values: list[Any], broken: list[bool]
) -> None:
    frame = pl.DataFrame({"c": values}, strict=False)
    mask = is_broken(rule(column="c", **fields), frame.schema["c"], REFERENCES)
    assert frame.select(mask).to_series().to_list() == broken


def test_one_column_before_another() -> None:
    frame = pl.DataFrame({"c": [1, 2, None], "d": [2, 2, 2]})
    mask = is_broken(rule(check="not_before", column="c", other="d"), pl.Int64(), {})
    assert frame.select(mask).to_series().to_list() == [True, False, False]


def test_a_default_may_depend_on_another_column() -> None:
    by = {"by": "k", "values": {"x": 1, "y": 2}}
    given = rule(check="not_null", column="c", severity="default", value=by)
    frame = pl.DataFrame({"k": ["x", "y", "z"]})
    made = frame.select(default_of(given, pl.Float64())).to_series().to_list()
    assert made == [1.0, 2.0, None]


@pytest.mark.parametrize(
    ("fields", "rows", "is_broken"),
    [
        ({"check": "null_rate", "column": "c", "max": 0.25}, [1, 1, 1, None], False),
        ({"check": "null_rate", "column": "c", "max": 0.25}, [1, 1, None, None], True),
        ({"check": "null_rate", "column": "c", "max": 0.25, "min_rows": 5}, [None] * 4, False),
        ({"check": "row_count", "min": 2, "max": 3}, [1], True),
        ({"check": "row_count", "min": 2, "max": 3}, [1] * 4, True),
        ({"check": "row_count", "min": 2, "max": 3}, [1] * 3, False),
        ({"check": "row_count", "min": 2, "max": 3}, [], False),
        ({"check": "quarantine_rate", "max": 0.5}, [1, 1, 1], False),
        ({"check": "quarantine_rate", "max": 0.2}, [1, 1, 1], True),
    ],
)
def test_rules_about_the_batch(fields: dict[str, Any], rows: list[Any], is_broken: bool) -> None:
    frame = pl.DataFrame({"c": rows}, schema={"c": pl.Int64})
    outcome = judged(rule(**(fields | {"severity": "halt"})), frame, quarantined_rows=1)
    assert (outcome is not None) == is_broken
    if outcome is not None:
        assert outcome.rows > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"check": "range", "column": "c"},
        {"check": "range", "column": "c", "min": 2, "max": 1},
        {"check": "matches", "column": "c", "pattern": "("},
        {"check": "not_null", "column": "c", "severity": "default"},
        {"check": "not_null", "column": "c", "value": 1},
        {"check": "null_rate", "column": "c", "max": 2, "severity": "halt"},
        {"check": "null_rate", "column": "c", "max": 0.5, "severity": "quarantine"},
        {"check": "sql", "column": "c"},
        {"check": "not_null", "column": "c", "severity": "ignore"},
        {"check": "one_of", "column": "c", "values": []},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rule(**fields)
