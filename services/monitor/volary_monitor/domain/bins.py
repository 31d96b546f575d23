"""Counts of values on the frozen edges of a reference, with bins of their own for the odd ones.

Counts of disjoint batches add up, so a window may be counted in parts and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """The distribution of one feature in training.

    `edges` are the inner edges, rising: value v is in bin i when edges[i-1] < v <= edges[i];
    `counts` has one entry a bin. Mean and standard deviation are of the same values.
    """

    feature: str
    edges: Floats
    counts: Counts
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Binned:
    """Values of one feature in one window, counted on a reference's edges.

    `inside` are the reference's own bins; `below` and `above` are finite values outside the
    range that training saw; `total_sum` and `total_squares` are of the finite values, less the
    reference's mean, so that the mean keeps its digits.
    """

    inside: Counts
    below: int
    above: int
    nan: int
    positive_infinite: int
    negative_infinite: int
    shifted_sum: float
    shifted_squares: float

    @property
    def finite(self) -> int:
        """Number of finite values."""
        return int(self.inside.sum()) + self.below + self.above

    @property
    def odd(self) -> int:
        """Number of values that are NaN, infinite or outside the range that training saw."""
        specials = self.nan + self.positive_infinite + self.negative_infinite
        return specials + self.below + self.above

    @property
    def total(self) -> int:
        """Number of values."""
        return self.finite + self.nan + self.positive_infinite + self.negative_infinite

    def __add__(self, other: Self) -> Binned:
        return Binned(
            self.inside + other.inside,
            self.below + other.below,
            self.above + other.above,
            self.nan + other.nan,
            self.positive_infinite + other.positive_infinite,
            self.negative_infinite + other.negative_infinite,
            self.shifted_sum + other.shifted_sum,
            self.shifted_squares + other.shifted_squares,
        )


def binned(values: Floats, reference: Reference) -> Binned:
    """Count values on a reference's edges: one pass, vectorised."""
    is_finite = np.isfinite(values)
    finite = values if is_finite.all() else values[is_finite]
    is_below, is_above = finite < reference.minimum, finite > reference.maximum
    inside = finite[~(is_below | is_above)]
    # side="left" puts a value that equals an edge into the bin below it
    places = np.searchsorted(reference.edges, inside, side="left")
    counts = np.bincount(places, minlength=len(reference.edges) + 1).astype(np.int64)
    shifted = finite - reference.mean
    return Binned(
        inside=counts,
        below=int(np.count_nonzero(is_below)),
        above=int(np.count_nonzero(is_above)),
        nan=int(np.count_nonzero(np.isnan(values))),
        positive_infinite=int(np.count_nonzero(np.isposinf(values))),
        negative_infinite=int(np.count_nonzero(np.isneginf(values))),
        shifted_sum=float(shifted.sum()),
        shifted_squares=float((shifted**2).sum()),
    )
