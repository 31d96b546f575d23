"""Which features of a window drifted, with the false discoveries among them under control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volary_monitor.domain.distances import Distance
from volary_monitor.domain.policy import DriftRule


@dataclass(frozen=True)
class Finding:
    """A distance, its adjusted p-value, and whether the feature drifted."""

    distance: Distance
    adjusted_p_value: float
    has_drifted: bool


def adjusted(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Return the p-values adjusted by Benjamini and Hochberg (1995), in the given order.

    Rejecting those at most q keeps the expected share of false rejections at most q, for
    independent or positively dependent tests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    result = np.empty_like(p)
    result[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return result


def find(distances: Sequence[Distance], rule: DriftRule) -> list[Finding]:
    """Return a finding a feature, largest effect first; p alone never makes a drift."""
    q_values = adjusted([each.p_value for each in distances])
    findings = [
        Finding(each, float(q), bool(q <= rule.false_discovery_rate) and is_large(each, rule))
        for each, q in zip(distances, q_values, strict=True)
    ]
    return sorted(findings, key=lambda found: -effect(found.distance, rule))


def is_large(found: Distance, rule: DriftRule) -> bool:
    """Say whether a shift is large enough to matter."""
    return effect(found, rule) >= 1.0


def effect(found: Distance, rule: DriftRule) -> float:
    """Return the larger of the two effects, each in units of its threshold."""
    return max(abs(found.mean_shift_sd) / rule.min_shift_sd, found.psi / rule.min_psi)
