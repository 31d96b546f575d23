"""Metrics of a binary classifier, alone and paired with another on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CLIP = 1e-6  # a score of 0 or 1 costs at most -ln(1e-6) = 13.8
BINS = 20  # of equal counts: 5 % each


@dataclass(frozen=True)
class Difference:
    """Candidate less baseline of one loss over n rows, with the sample variance (n - 1)."""

    metric: str
    mean: float
    variance: float
    bound: float


def log_losses(scores: Floats, labels: Floats) -> Floats:
    """Return -ln of the probability given to what happened, each row; scores are clipped."""
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    return -np.where(labels > 0, np.log(clipped), np.log1p(-clipped))


def squared_errors(scores: Floats, labels: Floats) -> Floats:
    """Return (score - label)^2, each row (Brier, 1950)."""
    return (scores - labels) ** 2


def auc(scores: Floats, labels: Floats) -> float:
    """Return the area under the ROC curve by ranks, ties counted half (Mann and Whitney, 1947)."""
    positives = int(np.count_nonzero(labels > 0))
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    above = float(ranks[labels > 0].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def metrics(scores: Floats, labels: Floats, threshold: float) -> dict[str, float]:
    """Return auc, log_loss, brier, accuracy, positive_share and mean_score; {} without rows."""
    if len(labels) == 0:
        return {}
    return {
        "auc": auc(scores, labels),
        "log_loss": float(log_losses(scores, labels).mean()),
        "brier": float(squared_errors(scores, labels).mean()),
        "accuracy": float(correct(scores, labels, threshold).mean()),
        "positive_share": float((labels > 0).mean()),
        "mean_score": float(scores.mean()),
    }


def distribution(scores: Floats) -> dict[str, object]:
    """Return the scores on edges at their own quantiles, as `ScoreDistribution` has them.

    Score s is in bin i when edges[i-1] < s <= edges[i]; equal scores share a bin, so there may
    be fewer than `BINS`. At least one score.
    """
    shares = np.arange(1, BINS) / BINS
    edges = np.unique(np.quantile(scores, shares, method="inverted_cdf"))
    edges = edges[edges < scores.max()]
    counts = np.bincount(np.searchsorted(edges, scores, side="left"), minlength=len(edges) + 1)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": float(scores.mean()),
        "standard_deviation": float(scores.std()),
        "minimum": float(scores.min()),
        "maximum": float(scores.max()),
    }


def calibration(scores: Floats, labels: Floats) -> dict[str, list[float]]:
    """Return the rising map from score to share of positives that fits best (isotonic regression).

    Pool adjacent violators (Ayer et al., 1955): blocks of rows, in order of score, merged until
    their shares rise. A block's point is its mean score and its share under Jeffreys' prior, so
    that a block of few rows is not sure of itself. At least one row.
    """
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    positives = np.bincount(inverse, weights=(labels > 0).astype(np.float64))
    blocks: list[tuple[float, float, float]] = []  # rows, positives, sum of scores
    rows = zip(counts.tolist(), positives.tolist(), (values * counts).tolist(), strict=True)
    for block in rows:
        blocks.append(block)
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            last, before = blocks.pop(), blocks.pop()
            merged = (before[0] + last[0], before[1] + last[1], before[2] + last[2])
            blocks.append(merged)
    shares = [(positive + 0.5) / (count + 1) for count, positive, _ in blocks]
    return {
        "scores": [total / count for count, _, total in blocks],
        "probabilities": np.maximum.accumulate(shares).tolist(),
    }


def correct(scores: Floats, labels: Floats, threshold: float) -> NDArray[np.bool_]:
    """Return which rows the decision got right."""
    return (scores > threshold) == (labels > 0)


def differences(
    candidate: Floats, baseline: Floats, labels: Floats, thresholds: tuple[float, float]
) -> list[Difference]:
    """Return paired differences of log loss, Brier score and error; at least two rows."""

    def errors(scores: Floats, threshold: float) -> Floats:
        return (~correct(scores, labels, threshold)).astype(np.float64)

    return [
        _difference("log_loss", _pair(log_losses, candidate, baseline, labels), -np.log(CLIP)),
        _difference("brier", _pair(squared_errors, candidate, baseline, labels), 1.0),
        _difference("error", errors(candidate, thresholds[0]) - errors(baseline, thresholds[1]), 1),
    ]


def _pair(
    loss: Callable[[Floats, Floats], Floats], candidate: Floats, baseline: Floats, labels: Floats
) -> Floats:
    return loss(candidate, labels) - loss(baseline, labels)


def _difference(metric: str, values: Floats, bound: float) -> Difference:
    variance = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    return Difference(metric, float(values.mean()), variance, float(bound))
