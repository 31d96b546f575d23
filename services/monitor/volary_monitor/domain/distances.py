"""How far a window is from its reference: PSI, Kolmogorov-Smirnov, mean shift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volary_monitor.domain.bins import Binned, Counts, Reference

SMALLEST_Z = 0.3
TERMS = 20  # exp(-2 (20 * 0.3)^2) is 5e-32
PSEUDO_COUNT = 0.5  # Jeffreys' prior: an empty bin has a small share instead of none


@dataclass(frozen=True)
class Distance:
    """Effects and evidence of one feature in one window."""

    feature: str
    values: int
    psi: float
    ks: float
    p_value: float
    mean_shift_sd: float
    out_of_range: int


def distance(window: Binned, reference: Reference) -> Distance:
    """Compare a window with its reference; a window without values is at distance 0."""
    statistic, p_value = kolmogorov_smirnov(window, reference)
    return Distance(
        feature=reference.feature,
        values=window.total,
        psi=population_stability(window, reference),
        ks=statistic,
        p_value=p_value,
        mean_shift_sd=mean_shift(window, reference),
        out_of_range=window.odd,
    )


def population_stability(window: Binned, reference: Reference) -> float:
    """Return the population stability index: sum of (p - q) ln(p / q) over bins.

    Odd values have bins of their own, which the reference left empty; Siddiqi, Credit Risk
    Scorecards (2006), with `PSEUDO_COUNT` added to every bin.
    """
    seen, expected = _with_odd(window, reference)
    if window.total == 0 or reference.total == 0:
        return 0.0
    occupied = (seen > 0) | (expected > 0)
    p, q = _shares(seen[occupied]), _shares(expected[occupied])
    return float(((p - q) * np.log(p / q)).sum())


def kolmogorov_smirnov(window: Binned, reference: Reference) -> tuple[float, float]:
    """Return the two-sample statistic on the reference's edges and its two-sided p-value.

    Values below the range come first, above it last, infinities outermost; NaN has no order
    and takes no part. On binned values the test is conservative.
    """
    zeros = [0, 0]
    low = [window.negative_infinite, window.below]
    high = [window.above, window.positive_infinite]
    seen = np.concatenate([low, window.inside, high])
    expected = np.concatenate([zeros, reference.counts, zeros])
    n, m = int(seen.sum()), int(expected.sum())
    if n == 0 or m == 0:
        return 0.0, 1.0
    statistic = float(np.abs(np.cumsum(seen) / n - np.cumsum(expected) / m).max())
    return statistic, kolmogorov_tail(statistic, n * m / (n + m))


def kolmogorov_tail(statistic: float, effective: float) -> float:
    """Return the chance of a distance this large under one distribution.

    `effective` is n m / (n + m). Stephens (1970) brings the limit of Kolmogorov (1933),
    2 sum (-1)^(k-1) exp(-2 k^2 z^2), to finite samples; below z = 0.3 it is 1 to 5 digits.
    """
    root = np.sqrt(effective)
    z = (root + 0.12 + 0.11 / root) * statistic
    if z < SMALLEST_Z:
        return 1.0
    k = np.arange(1, TERMS + 1)
    signs = np.where(k % 2 == 1, 1.0, -1.0)
    return float(np.clip(2 * (signs * np.exp(-2 * (k * z) ** 2)).sum(), 0.0, 1.0))


def mean_shift(window: Binned, reference: Reference) -> float:
    """Return the shift of the finite values' mean in standard deviations of the reference.

    A feature that was constant in training is infinitely far once it moves.
    """
    if window.finite == 0:
        return 0.0
    shift = window.shifted_sum / window.finite
    if reference.standard_deviation > 0:
        return shift / reference.standard_deviation
    return 0.0 if shift == 0 else float(np.copysign(np.inf, shift))


def _with_odd(window: Binned, reference: Reference) -> tuple[Counts, Counts]:
    odd = [
        window.negative_infinite,
        window.below,
        window.above,
        window.positive_infinite,
        window.nan,
    ]
    seen = np.concatenate([window.inside, odd])
    return seen, np.concatenate([reference.counts, np.zeros(len(odd), np.int64)])


def _shares(counts: Counts) -> np.ndarray:
    smooth = counts + PSEUDO_COUNT
    return smooth / smooth.sum()
