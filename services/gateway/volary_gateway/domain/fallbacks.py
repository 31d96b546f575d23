"""What a call gets when no replica can answer it: the last prediction, then what is declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from volary_kit.errors import InvalidArgument

from volary_gateway.domain.names import ModelName


class FallbackTier(StrEnum):
    """How good the answer is, as the reply states it."""

    RULE = "rule"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class FallbackOutput:
    """One output of a rule: the same row for every row that was asked for."""

    name: str
    row: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model's declared answer for when none of its replicas lives."""

    model: ModelName
    tier: FallbackTier
    outputs: tuple[FallbackOutput, ...]
    updated_us: int
    cached_us: int = 0  # how old the last prediction of the same question may be; 0: none comes


def check_fallback(tier: FallbackTier, outputs: Sequence[FallbackOutput]) -> None:
    """Raise InvalidArgument for a rule without outputs, outputs without a rule, a name twice."""
    names = [output.name for output in outputs]
    if (tier is FallbackTier.RULE) != bool(outputs):
        raise InvalidArgument(
            "FALLBACK_OUTPUTS", "tier rule has outputs, tier none has none", field="outputs"
        )
    if len(set(names)) != len(names):
        raise InvalidArgument("OUTPUT_TWICE", "an output is named twice", field="outputs")
