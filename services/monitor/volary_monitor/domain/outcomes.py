"""Outcomes of predictions, and what may be asked of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from volary_kit.errors import InvalidArgument

UNIT_BYTES = 16
TRUTH_METRICS = ("accuracy", "brier")


class Unit(Enum):
    """What counts as one observation."""

    CALL = 1
    PER_STEP = 2
    UNIT = 3


class Source(Enum):
    """Where values come from: told by callers, or made of truth and score."""

    RECORDED = 1
    TRUTH = 2


@dataclass(frozen=True)
class Outcome:
    """A value of a metric that came of a prediction; `unit_hash` is None for nobody's."""

    prediction_id: str
    metric: str
    value: float
    unit_hash: bytes | None
    known_us: int


@dataclass(frozen=True)
class Question:
    """Sums of a metric over what one rollout or experiment routed, as known at an instant."""

    rollout: str
    metric: str
    lower: float
    upper: float
    unit: Unit
    source: Source
    as_of_us: int
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what has no answer, with the field named."""
        if not self.lower < self.upper:
            raise InvalidArgument("RANGE_EMPTY", "upper must be above lower", field="upper")
        if self.source is Source.RECORDED:
            return
        if self.metric not in TRUTH_METRICS:
            raise InvalidArgument(
                "METRIC_UNKNOWN", f"truth gives {' and '.join(TRUTH_METRICS)}", field="metric"
            )
        if self.unit is not Unit.CALL:
            raise InvalidArgument("UNIT_UNKNOWN", "truth knows calls, not callers", field="unit")


@dataclass(frozen=True)
class VariantSums:
    """Sums over the observations of one version in one generation, scaled to [0, 1]."""

    version: int
    generation: int
    count: int
    total: float
    squares: float


@dataclass(frozen=True)
class Sums:
    """All variants; and what was clipped, was nobody's, or came after the first."""

    variants: list[VariantSums]
    clipped: int
    without_unit: int
    later: int


def unit_hash(project: str, unit: str) -> bytes | None:
    """Return what stands for a sticky key: the key itself is not kept."""
    if not unit:
        return None
    return hashlib.blake2b(f"{project}\0{unit}".encode(), digest_size=UNIT_BYTES).digest()
