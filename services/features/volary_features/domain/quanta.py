"""Numbers as whole quanta of a declared unit, so that sums are exact in any order.

A float64 sum depends on the order of its terms; an int64 sum does not. A column that is
summed declares its `decimals` d; each value is rounded once to a multiple of 10**-d (half to
even) and everything after that is integer arithmetic, until one division at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Quanta = npt.NDArray[np.int64]

# 2**23 values of 2**40 quanta fit an int64: 8 million records of one entity in one window
MAX_QUANTUM = 1 << 40
MISSING = np.iinfo(np.int64).min


def numbers(values: Sequence[Any]) -> Numbers:
    """Return scalars as doubles: true is 1, whatever is no finite number is missing (NaN)."""
    found = np.array([_number(value) for value in values], dtype=np.float64)
    found[~np.isfinite(found)] = np.nan
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return np.nan
    if isinstance(value, datetime):
        raise TypeError("an instant is no number")
    return np.nan


def quantised(values: Numbers, decimals: int) -> Quanta:
    """Return values as whole quanta of 10**-decimals; `MISSING` for NaN and what is too large."""
    with np.errstate(invalid="ignore"):
        scaled = np.rint(values * float(10**decimals))
        is_good = np.abs(scaled) <= MAX_QUANTUM
    return np.where(is_good, np.where(is_good, scaled, 0.0).astype(np.int64), MISSING)


def number_of(quanta: Quanta, count: Quanta, decimals: int) -> Numbers:
    """Return quanta / (count * 10**decimals) in one correctly rounded division a value.

    Correctly rounded as long as both sides are below 2**53; above it both are rounded first,
    the same wherever this runs. NaN where the count is 0.
    """
    parts = count * np.int64(10**decimals)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = quanta.astype(np.float64) / parts.astype(np.float64)
    found[count == 0] = np.nan
    return found


def number_of_one(quanta: int, count: int, decimals: int) -> float:
    """Return what `number_of` does for one value: both sides are rounded to doubles first."""
    return float(quanta) / float(count * 10**decimals) if count else math.nan
