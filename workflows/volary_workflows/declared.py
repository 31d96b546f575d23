"""Read what people declare: values become numbers, and every problem names its field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


class SpecificationError(ValueError):
    """A specification is wrong; `problems` maps each field to what is wrong with it."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{field}: {text}" for field, text in problems.items()))


class Reader:
    """Turns declared values into typed ones and keeps what is wrong."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def only(self, row: Mapping[str, Any], known: set[str], at: str) -> None:
        for key in row:
            if key not in known:
                self.problems[f"{at}{key}"] = "is not a field"

    def rows(self, document: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
        rows = document.get(field, [])
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            self.problems[field] = "must be a list of objects"
            return []
        return rows

    def instant(self, value: Any, field: str) -> float:
        if value == 0:
            return 0.0
        try:
            time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        except ValueError:
            self.problems[field] = "must be an instant such as 2026-12-24T18:00:00Z"
            return 0.0
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

    def seconds(self, value: Any, field: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value))
        if match:
            return float(match[1]) * UNITS_S[match[2]]
        return self.number(value, field, "must be a duration such as 90s or 24h")

    def share(self, value: Any, field: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", str(value))
        if match:
            return float(match[1]) / 100
        return self.number(value, field, "must be a share such as 10% or 0.1")

    def whole(self, value: Any, field: str) -> int:
        number = self.number(value, field, "must be a whole number")
        if number != int(number):
            self.problems[field] = "must be a whole number"
        return int(number)

    def interval(self, value: Any, field: str) -> tuple[float, float]:
        text = "must be two numbers, the lower first, such as [0, 100]"
        if not isinstance(value, list) or len(value) != 2:
            self.problems[field] = text
            return 0.0, 1.0
        return self.number(value[0], field, text), self.number(value[1], field, text)

    def number(self, value: Any, field: str, text: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and math.isfinite(value):
            return float(value)
        self.problems[field] = text
        return 0.0
