"""Durations as people write them in declared documents: `7d`, `36h`, `20m`, `2s`, `400ms`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
TEXT = re.compile(rf"(\d{{1,9}})({'|'.join(UNITS_US)})")


def parse_us(text: Any) -> int:
    """Return microseconds of `<whole number><us|ms|s|m|h|d>`; raise ValueError otherwise."""
    match = TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("must be a whole number and a unit: 400ms, 2s, 20m, 36h, 7d")
    return int(match[1]) * UNITS_US[match[2]]


DurationUs = Annotated[int, BeforeValidator(parse_us)]
"""A pydantic field: text in the document, microseconds in the model."""
