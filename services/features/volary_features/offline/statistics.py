"""The distribution of a column on frozen edges: what drift is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from volary_features.domain.quanta import Numbers

# enough for a shape; each further bin adds 1/n to the index (PSI) that n equal rows show
BINS = 32


@dataclass(frozen=True)
class Distribution:
    """Counts on inner edges, rising: value v is in bin i when edges[i-1] < v <= edges[i]."""

    feature: str
    edges: Numbers
    counts: npt.NDArray[np.int64]
    defaulted: int
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float


def distribution_of(feature: str, values: Numbers, defaulted: int = 0) -> Distribution:
    """Return the distribution of finite values, on their own quantiles; at least one value."""
    wanted = np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges = np.unique(wanted)
    # an edge at the maximum would leave the last bin empty for ever
    edges = edges[edges < values.max()]
    places = np.searchsorted(edges, values, side="left")
    return Distribution(
        feature=feature,
        edges=edges,
        counts=np.bincount(places, minlength=len(edges) + 1).astype(np.int64),
        defaulted=defaulted,
        mean=float(values.mean()),
        standard_deviation=float(values.std()),
        minimum=float(values.min()),
        maximum=float(values.max()),
    )
