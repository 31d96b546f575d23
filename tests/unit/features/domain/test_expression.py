from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from volary_features.domain.expression import EVENT_TIME, Expression

NUMBERS = st.floats(min_value=-1e6, max_value=1e6)


def value(text: str, **fields: float) -> float:
    expression = Expression(text)
    expression.check()
    arrays = {name: np.array([each], dtype=np.float64) for name, each in fields.items()}
    return float(expression.evaluate(arrays, 1)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7.0),
        ("-x % 3", 1.0),  # the sign of the divisor
        ("2 ** 3 - x ** 2", 4.0),
        ("floor(-1.5) + ceil(1.2)", 0.0),
        ("min(x, 1) + max(x, 5)", 6.0),
        ("x > 1", 1.0),
        ("x == 1", 0.0),
        ("floor(705 / 100) * 60 + 705 % 100", 425.0),
        ("abs(-x) * sqrt(4)", 4.0),
        ("pi", math.pi),
        ("log1p(0) + exp(0) + log(1) + cos(0) + sin(0)", 2.0),
    ],
)
def test_arithmetic(text: str, expected: float) -> None:
    assert value(text, x=2.0) == expected


@pytest.mark.parametrize(
    "text", ["1 / (x - 2)", "sqrt(-x)", "log(0 * x)", "exp(x * 1000)", "x / y", "y > 1"]
)
def test_what_has_no_finite_value_is_missing(text: str) -> None:
    assert math.isnan(value(text, x=2.0, y=math.nan))


def test_clock_functions_are_utc() -> None:
    thursday_noon_us = 12 * 3_600_000_000.0  # 1970-01-01 was a Thursday
    assert value(f"minute_of_day({EVENT_TIME})", event_time=thursday_noon_us) == 720.0
    assert value(f"day_of_week({EVENT_TIME})", event_time=thursday_noon_us) == 3.0


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "x.real",
        "x[0]",
        "lambda: 1",
        "[x]",
        "'text'",
        "True",
        "None",
        "x if x else 1",
        "x and y",
        "eval(x)",
        "sin(x, x)",
        "sin(x=1)",
        "x ** y",
        "x ** 9",
        "1 < x < 3",
        "x := 3",
        "1e999",
        "",
        "(" * 300,
        "+".join(["x"] * 200),
        "9" * 400,
        "1j",
        "x @ y",
        "f'{x}'",
        "...",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Expression(text).check()


def test_fields_are_those_that_a_read_must_give() -> None:
    assert Expression("sin(pi * x) + y / event_time").fields == {"x", "y"}


@given(st.lists(NUMBERS, min_size=1, max_size=40))
def test_many_rows_have_the_bits_of_one_row(values: list[float]) -> None:
    expression = Expression("sin(x) + cos(x / 3) * log1p(abs(x)) - x % 7")
    together = expression.evaluate({"x": np.array(values)}, len(values))
    alone = [expression.evaluate({"x": np.array([each])}, 1)[0] for each in values]
    np.testing.assert_array_equal(together.view(np.int64), np.array(alone).view(np.int64))
