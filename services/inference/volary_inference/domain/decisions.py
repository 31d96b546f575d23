"""What a score means: how sure it is, and which declared band it lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from volary_kit.errors import InvalidArgument
from volary_kit.serving import Band


@dataclass(frozen=True)
class Calibration:
    """Probabilities by score, straight lines between: isotonic regression or any other rising map.

    `scores` rise; both have one entry a point.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Calibration:
        """Read `{"scores": [...], "probabilities": [...]}`."""
        try:
            scores = np.asarray(document["scores"], np.float64)
            probabilities = np.asarray(document["probabilities"], np.float64)
        except (KeyError, TypeError, ValueError):
            raise _invalid() from None
        is_paired = scores.ndim == 1 and scores.shape == probabilities.shape and scores.size > 0
        if not is_paired or not np.isfinite(scores).all() or (np.diff(scores) <= 0).any():
            raise _invalid()
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise _invalid()
        return cls(tuple(scores.tolist()), tuple(probabilities.tolist()))

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Return what share of rows with such scores were positive."""
        return np.interp(scores, self.scores, self.probabilities)


@dataclass(frozen=True, slots=True)
class Decision:
    """Reason codes, the band's own first, and the recommended action."""

    reason_codes: tuple[str, ...]
    action: str


@dataclass(frozen=True)
class Bands:
    """The declared bands, and the reason codes of features."""

    bands: Sequence[Band]
    reasons: Mapping[str, str]

    def decide(self, score: float, raised: Sequence[str] = ()) -> Decision:
        """Return what a score means; `raised` are the features that raised it, the most first.

        A feature without a declared code is left out.
        """
        bounded = (each for each in self.bands if each.below is not None and score < each.below)
        band = next(bounded, self.bands[-1])
        codes = [self.reasons[name] for name in raised if name in self.reasons]
        return Decision((band.code, *codes[: band.attributions]), band.action)


def _invalid() -> InvalidArgument:
    return InvalidArgument("CALIBRATION_INVALID", "the calibration is no rising list of points")
