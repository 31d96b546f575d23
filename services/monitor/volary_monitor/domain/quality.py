"""How a version did, as far as its truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volary_monitor.domain.policy import QualityRule

Floats = NDArray[np.float64]
CLIP = 1e-6  # a score of 0 or 1 costs at most -ln(1e-6) = 13.8


@dataclass(frozen=True)
class Quality:
    """Metrics over the labelled among `predictions`; without labels they are 0."""

    predictions: int
    labelled: int
    accuracy: float = 0.0
    auc: float = 0.0
    brier: float = 0.0
    log_loss: float = 0.0
    positive_share: float = 0.0
    mean_score: float = 0.0

    @property
    def coverage(self) -> float:
        """Share whose truth is known: how far the other numbers can be trusted."""
        return self.labelled / self.predictions if self.predictions else 0.0


@dataclass(frozen=True)
class Breach:
    """A bound that a window passed."""

    metric: str
    value: float
    bound: float


def measure(predictions: int, scores: Floats, labels: Floats, threshold: float) -> Quality:
    """Measure labelled scores; `threshold` is the version's own decision threshold."""
    if len(labels) == 0:
        return Quality(predictions, 0)
    is_positive = labels > 0
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    losses = -np.where(is_positive, np.log(clipped), np.log1p(-clipped))
    return Quality(
        predictions=predictions,
        labelled=len(labels),
        accuracy=float(((scores > threshold) == is_positive).mean()),
        auc=area_under_roc(scores, is_positive),
        brier=float(((scores - labels) ** 2).mean()),
        log_loss=float(losses.mean()),
        positive_share=float(is_positive.mean()),
        mean_score=float(scores.mean()),
    )


def area_under_roc(scores: Floats, is_positive: NDArray[np.bool_]) -> float:
    """Return the area by ranks, ties counted half (Mann and Whitney, 1947); 0.5 for one class."""
    positives = int(np.count_nonzero(is_positive))
    negatives = len(scores) - positives
    if positives == 0 or negatives == 0:
        return 0.5
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    above = float(ranks[is_positive].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def breaches(found: Quality, registered: dict[str, float], rule: QualityRule) -> list[Breach]:
    """Return the bounds that a mature window passed; none where too little truth is known.

    `registered` are the version's metrics at registration; one that is missing bounds nothing.
    """
    if found.coverage < rule.min_coverage or found.labelled < rule.min_labelled:
        return []
    passed: list[Breach] = []
    if rule.max_log_loss_increase is not None and "log_loss" in registered:
        bound = registered["log_loss"] + rule.max_log_loss_increase
        if found.log_loss > bound:
            passed.append(Breach("log_loss", found.log_loss, bound))
    if rule.max_auc_drop is not None and "auc" in registered:
        bound = registered["auc"] - rule.max_auc_drop
        if found.auc < bound:
            passed.append(Breach("auc", found.auc, bound))
    if rule.min_accuracy is not None and found.accuracy < rule.min_accuracy:
        passed.append(Breach("accuracy", found.accuracy, rule.min_accuracy))
    return passed
