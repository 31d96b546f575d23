"""The closed language of request-time features: arithmetic on fields, nothing that can act.

    sin(2 * pi * minute_of_day(event_time) / 1440)
    floor(sched_dep_time / 100) * 60 + sched_dep_time % 100

Numbers, names of fields, `pi`, `event_time`, `+ - * / % **`, comparisons (1 or 0) and the
functions below. A missing field, a division by zero and whatever else has no finite value
make the whole missing. Parsed with `ast` and checked node by node; never evaluated as Python.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from volary_features.domain.instants import DAY_US, MINUTE_US

Numbers = npt.NDArray[np.float64]
Evaluate = Callable[[Mapping[str, Numbers]], Any]

EVENT_TIME = "event_time"  # microseconds since the epoch, exact in a double
CONSTANTS = {"pi": math.pi}
FEW = 32  # below, to look for equal values costs more than it saves
MAX_LENGTH, MAX_DEPTH, MAX_EXPONENT = 500, 20, 8
MONDAY_OFFSET_DAYS = 3  # 1970-01-01 was a Thursday


def _each(function: Callable[[float], float]) -> Callable[[Numbers], Numbers]:
    """Apply a function of libm to every number.

    numpy's own vector versions may round one number and many differently.
    """

    def apply(values: Numbers) -> Numbers:
        if len(values) <= FEW:
            return np.array([_quietly(function, value) for value in values.tolist()])
        unique, places = np.unique(values, return_inverse=True)
        found = [_quietly(function, value) for value in unique.tolist()]
        return np.array(found, dtype=np.float64)[places]

    return apply


def _quietly(function: Callable[[float], float], value: float) -> float:
    try:
        return function(value)
    except (ValueError, OverflowError):
        return math.nan


FUNCTIONS: dict[str, tuple[int, Callable[..., Numbers]]] = {
    "abs": (1, np.abs),
    "floor": (1, np.floor),
    "ceil": (1, np.ceil),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "sqrt": (1, np.sqrt),
    "sin": (1, _each(math.sin)),
    "cos": (1, _each(math.cos)),
    "exp": (1, _each(math.exp)),
    "log": (1, _each(math.log)),
    "log1p": (1, _each(math.log1p)),
    "minute_of_day": (1, lambda time: np.floor(np.mod(time, DAY_US) / MINUTE_US)),
    "day_of_week": (1, lambda time: np.mod(np.floor(time / DAY_US) + MONDAY_OFFSET_DAYS, 7)),
}
OPERATORS: dict[type[ast.AST], Callable[..., Numbers]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Mod: np.mod,
    ast.USub: np.negative,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}


@dataclass(frozen=True)
class Expression:
    """A parsed expression; two with the same text are equal."""

    text: str

    @cached_property
    def _tree(self) -> ast.expr:
        return _parsed(self.text)

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names that a read must give, `event_time` left out."""
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        names = {
            node.id
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Name) and id(node) not in called
        }
        return frozenset(names - set(CONSTANTS) - {EVENT_TIME})

    @cached_property
    def _run(self) -> Evaluate:
        return _compiled(self._tree)

    def check(self) -> None:
        """Raise ValueError when the text is not of the language."""
        _check(self._tree, 0)

    def evaluate(self, fields: Mapping[str, Numbers], rows: int) -> Numbers:
        """Return one number a row, NaN where there is none."""
        with np.errstate(all="ignore"):
            found = np.empty(rows)
            found[:] = self._run(fields)
        found[~np.isfinite(found)] = np.nan
        return found


def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"has more than {MAX_LENGTH} characters")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("is no expression") from None


def _check(node: ast.expr, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_DEPTH}")
    for child in _operands(node):
        _check(child, depth + 1)


def _operands(node: ast.expr) -> list[ast.expr]:
    """Return what a node works on; raise ValueError for a node that the language lacks."""
    match node:
        case ast.Constant(value=value):
            _number(value)
            return []
        case ast.Name():
            return []
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return [operand]
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            if not 0 <= power <= MAX_EXPONENT:
                raise ValueError(f"has a power outside 0 to {MAX_EXPONENT}")
            return [left]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return [left, right]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return [left, right]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            if len(arguments) != FUNCTIONS[name][0]:
                raise ValueError(f"{name} takes {FUNCTIONS[name][0]} numbers")
            return arguments
    raise ValueError(f"has {type(node).__name__}, which the language lacks")


def _number(value: object) -> np.float64:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("has a constant that is no number")  # noqa: TRY004 - the text is wrong
    try:
        found = np.float64(float(value))
    except OverflowError:
        found = np.float64(math.inf)
    if not np.isfinite(found):
        raise ValueError("has a number that is too large")
    return found


def _compiled(node: ast.expr) -> Evaluate:
    """Return a checked node as a function of the fields."""
    match node:
        case ast.Constant(value=value):
            number = _number(value)
            return lambda _: number
        case ast.Name(id=name) if name in CONSTANTS:
            constant = np.float64(CONSTANTS[name])
            return lambda _: constant
        case ast.Name(id=name):
            return lambda fields: fields[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            base = _compiled(left)
            return lambda fields: _power(base(fields), power)
        case ast.UnaryOp(op=op, operand=operand):
            return _applied(OPERATORS[type(op)], [operand])
        case ast.BinOp(left=left, op=op, right=right):
            return _applied(OPERATORS[type(op)], [left, right])
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _applied(partial(_compared, OPERATORS[type(op)]), [left, right])
        case ast.Call(func=ast.Name(id=name), args=arguments):
            function = FUNCTIONS[name][1]
            return _applied(lambda *each: function(*map(np.atleast_1d, each)), arguments)
    raise ValueError(f"has {type(node).__name__}, which the language lacks")


def _applied(function: Callable[..., Any], arguments: Sequence[ast.expr]) -> Evaluate:
    first, *more = [_compiled(argument) for argument in arguments]
    if not more:
        return lambda fields: function(first(fields))
    (second,) = more  # nothing in the language takes three
    return lambda fields: function(first(fields), second(fields))


def _power(value: Any, power: int) -> Any:
    result = np.ones_like(value)
    for _ in range(power):  # by multiplication: pow of libm and of numpy differ in the last bit
        result = np.multiply(result, value)
    return result


def _compared(compare: Callable[..., Any], left: Any, right: Any) -> Any:
    answer = np.asarray(compare(left, right), dtype=np.float64)
    return np.where(np.isnan(left) | np.isnan(right), np.nan, answer)
