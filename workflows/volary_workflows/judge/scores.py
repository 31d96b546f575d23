"""From single scores, labels and predictions to the sums and bins that the judge reads.

Pure, and without numpy: whoever holds the records (the diff report of a shadow, the log of
predictions, a metric of the business) folds them here. Sums add up, so a feeder may fold what is
new and add it to what it stored.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence

from volary_workflows.judge.inputs import (
    BINS,
    PairedBins,
    PairedOutcomes,
    PairedScores,
    Scores,
)


def scaled(value: float, lower: float, upper: float) -> float:
    """Return where a score lies in its declared range, as a number in [0, 1].

    ValueError when it lies outside or is not finite: a bounded test must not be fed the unbounded.
    """
    if not lower < upper:
        raise ValueError(f"the range {lower:g}..{upper:g} is empty")
    if not lower <= value <= upper:
        raise ValueError(f"{value:g} is outside the declared range {lower:g}..{upper:g}")
    return (value - lower) / (upper - lower)


def sum_scores(scores: Iterable[float]) -> Scores:
    """Return the sums of scores in [0, 1]."""
    values = [scaled(score, 0.0, 1.0) for score in scores]
    return Scores(len(values), math.fsum(values), math.fsum(value * value for value in values))


def add_scores(left: Scores, right: Scores) -> Scores:
    """Return the sums of both."""
    return Scores(left.count + right.count, left.total + right.total, left.squares + right.squares)


def pair_outcomes(metric: str, wrong: Iterable[tuple[bool, bool]]) -> PairedOutcomes:
    """Return the counts of labelled pairs of (candidate was wrong, baseline was wrong)."""
    pairs = list(wrong)
    return PairedOutcomes(
        metric,
        len(pairs),
        sum(ours and not theirs for ours, theirs in pairs),
        sum(theirs and not ours for ours, theirs in pairs),
    )


def pair_scores(metric: str, losses: Iterable[tuple[float, float]]) -> PairedScores:
    """Return the sums of pairs of losses in [0, 1]: (the candidate's, the baseline's)."""
    differences = [scaled(ours, 0.0, 1.0) - scaled(theirs, 0.0, 1.0) for ours, theirs in losses]
    squares = math.fsum(each * each for each in differences)
    return PairedScores(metric, len(differences), math.fsum(differences), squares)


def freeze_bins(predictions: Sequence[float]) -> list[float]:
    """Return the nine edges that cut earlier predictions of the baseline into tenths.

    Fewer where values repeat, so that a classifier's few answers keep bins of their own.
    """
    ordered = sorted(value for value in predictions if math.isfinite(value))
    if not ordered:
        return []
    return sorted({ordered[len(ordered) * k // BINS] for k in range(1, BINS)})


def bin_of(edges: Sequence[float], prediction: float) -> int:
    """Return the bin of a prediction: the number of edges at or below it; NaN takes the last."""
    return BINS - 1 if math.isnan(prediction) else bisect.bisect_right(edges, prediction)


def count_bins(edges: Sequence[float], predictions: Iterable[float]) -> list[int]:
    """Return how many predictions fell into each of the ten bins."""
    counts = [0] * BINS
    for prediction in predictions:
        counts[bin_of(edges, prediction)] += 1
    return counts


def pair_bins(
    metric: str, edges: Sequence[float], predictions: Iterable[tuple[float, float]]
) -> PairedBins:
    """Return the counts of pairs of predictions: (the candidate's, the baseline's)."""
    counts = [[0] * BINS for _ in range(BINS)]
    for ours, theirs in predictions:
        counts[bin_of(edges, theirs)][bin_of(edges, ours)] += 1
    return PairedBins(metric, counts)
