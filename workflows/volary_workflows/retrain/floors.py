"""Floors: what a candidate must reach by itself, also without a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping

FLOORS_VERSION = "floors/1"


def broken_floors(floors: Mapping[str, float], metrics: Mapping[str, float]) -> list[str]:
    """Return one sentence for each declared floor that the candidate does not reach."""
    return [
        f"{name} is {metrics.get(name, math.nan):.4f}, below its floor {floor:g}"
        for name, floor in floors.items()
        if not metrics.get(name, math.nan) >= floor
    ]
