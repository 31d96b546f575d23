"""A tiny language of numbers: what a declaration may compute, and nothing else.

    expression = or; or = and {"or" and}; and = not {"and" not}; not = ["not"] compared
    compared   = sum [("<" | "<=" | ">" | ">=" | "==" | "!=") sum]
    sum        = term {("+" | "-") term}; term = factor {("*" | "/") factor}
    factor     = ["-"] (number | name | function "(" expression {"," expression} ")" | "(" ... ")")

A name is letters, digits, `_` and `.`, as features have it. A comparison is 1 or 0. There are no
assignments, loops, attributes or calls of anything but `FUNCTIONS`, and a text has at most
`MAX_LENGTH` characters, so every expression ends, within microseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from volary_kit.errors import InvalidArgument

MAX_LENGTH = 1_000
MAX_DEPTH = 50
TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_.]*)|(?P<sign><=|>=|==|!=|[-+*/(),<>]))"
)
Evaluate = Callable[[Mapping[str, float]], float]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "abs": (1, math.fabs),
    "clip": (3, lambda x, low, high: min(max(x, low), high)),
    "exp": (1, math.exp),
    "if": (3, lambda condition, yes, no: yes if condition else no),
    "log": (1, math.log),
    "max": (2, max),
    "min": (2, min),
    "sigmoid": (1, _sigmoid),
    "sqrt": (1, math.sqrt),
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "and": lambda a, b: float(bool(a) and bool(b)),
    "or": lambda a, b: float(bool(a) or bool(b)),
}


@dataclass(frozen=True)
class Expression:
    """A text that was read: the names that it uses, and its value for given ones."""

    text: str
    names: frozenset[str]
    _evaluate: Evaluate

    def value(self, names: Mapping[str, float]) -> float | None:
        """Return the value, None where it has none: a division by 0, a logarithm of -1."""
        try:
            found = float(self._evaluate(names))
        except (ArithmeticError, ValueError):
            return None
        return found if math.isfinite(found) else None


def read(text: str) -> Expression:
    """Read a text; raise InvalidArgument `EXPRESSION_INVALID` that says where it is wrong."""
    if len(text) > MAX_LENGTH:
        raise _invalid(f"it has more than {MAX_LENGTH} characters")
    reader = _Reader(text)
    evaluate = reader.either()
    reader.end()
    return Expression(text, frozenset(reader.names), evaluate)


class _Reader:
    """Recursive descent over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0
        self.names: set[str] = set()

    def either(self) -> Evaluate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _invalid(f"it nests more than {MAX_DEPTH} deep")
        found = self._chain(self._both, ("or",))
        self._depth -= 1
        return found

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise _invalid(f"nothing may follow before {self._tokens[self._at]!r}")

    def _both(self) -> Evaluate:
        return self._chain(self._negated, ("and",))

    def _negated(self) -> Evaluate:
        isnt = False
        while self._take("not"):
            isnt = not isnt
        inner = self._compared()
        return (lambda names: float(not inner(names))) if isnt else inner

    def _compared(self) -> Evaluate:
        left = self._sum()
        sign = self._take(*COMPARISONS)
        if sign is None:
            return left
        right, holds = self._sum(), COMPARISONS[sign]
        return lambda names: float(holds(left(names), right(names)))

    def _sum(self) -> Evaluate:
        return self._chain(self._term, ("+", "-"))

    def _term(self) -> Evaluate:
        return self._chain(self._factor, ("*", "/"))

    def _chain(self, part: Callable[[], Evaluate], signs: tuple[str, ...]) -> Evaluate:
        """Read parts with signs between them, from the left; one loop, however many there are."""
        first = part()
        rest: list[tuple[Callable[[float, float], float], Evaluate]] = []
        while (sign := self._take(*signs)) is not None:
            rest.append((OPERATORS[sign], part()))
        if not rest:
            return first

        def evaluate(names: Mapping[str, float]) -> float:
            value = first(names)
            for operator, each in rest:
                value = operator(value, each(names))
            return value

        return evaluate

    def _factor(self) -> Evaluate:
        is_negative = False
        while self._take("-"):
            is_negative = not is_negative
        inner = self._atom()
        return (lambda names: -inner(names)) if is_negative else inner

    def _atom(self) -> Evaluate:
        if self._take("("):
            inner = self.either()
            self._require(")")
            return inner
        token = self._next()
        if token[0].isdigit() or token[0] == ".":
            number = float(token)
            return lambda _: number
        if token in FUNCTIONS and self._take("("):
            return self._call(token)
        if not (token[0].isalpha() or token[0] == "_") or token in ("and", "or", "not"):
            raise _invalid(f"{token!r} is out of place")
        self.names.add(token)
        return lambda names: names[token]

    def _call(self, name: str) -> Evaluate:
        count, function = FUNCTIONS[name]
        arguments = [self.either()]
        while self._take(","):
            arguments.append(self.either())
        self._require(")")
        if len(arguments) != count:
            raise _invalid(f"{name} takes {count} arguments, not {len(arguments)}")
        return lambda names: function(*(argument(names) for argument in arguments))

    def _take(self, *tokens: str) -> str | None:
        if self._at < len(self._tokens) and self._tokens[self._at] in tokens:
            self._at += 1
            return self._tokens[self._at - 1]
        return None

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise _invalid("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _require(self, token: str) -> None:
        if self._take(token) is None:
            raise _invalid(f"{token!r} is missing")


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = TOKEN.match(text, position)
        if match is None:
            raise _invalid(f"character {position + 1} is not understood")
        found.append(match.group().strip())
        position = match.end()
    return found


def _invalid(text: str) -> InvalidArgument:
    return InvalidArgument("EXPRESSION_INVALID", f"the expression is not valid: {text}")
