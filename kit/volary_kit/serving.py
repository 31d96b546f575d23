"""How a version is to be served, as it is declared with a training and stored with a version."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from volary_kit import expressions
from volary_kit.documents import Strict
from volary_kit.durations import DurationUs, parse_us
from volary_kit.errors import InvalidArgument

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Code = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,62}$")]


def _expression(text: str) -> str:
    try:
        expressions.read(text)
    except InvalidArgument as error:
        raise ValueError(error.message) from None
    return text


class Cache(Strict):
    """Answer with the last prediction of the same entity, else of the same input."""

    max_age: Annotated[DurationUs, Field(gt=0)] = parse_us("10m")
    entries: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000


class ResponseCache(Strict):
    """Answer the same input of the same version with the reply that it had, for `max_age`.

    Opt-in: the reply says that it is no new one, and what is kept is in Redis. `max_bytes` bounds
    one reply; a longer one is not kept.
    """

    max_age: Annotated[DurationUs, Field(gt=0)] = parse_us("10m")
    max_bytes: Annotated[int, Field(ge=1, le=1 << 20)] = 64 << 10


class Fallback(Strict):
    """What answers when the model cannot, in this order; nothing declared: the call fails.

    `rule` computes the score from the features by name. `none` answers without a prediction.
    """

    cache: Cache | None = None
    rule: Annotated[str, AfterValidator(_expression)] | None = None
    none: bool = False


class Breaker(Strict):
    """Leave a version in peace for `open_for` once `failures` of its last `calls` failed."""

    failures: Share = 0.5
    calls: Annotated[int, Field(ge=2, le=10_000)] = 20
    open_for: Annotated[DurationUs, Field(gt=0)] = parse_us("5s")


class Band(Strict):
    """Scores up to `below`, exclusive; the last band has no bound.

    `attributions` is how many of the inputs that raised the score most are named with it.
    """

    below: Annotated[float, Field(allow_inf_nan=False)] | None = None
    code: Code
    action: Annotated[str, Field(min_length=1, max_length=256)]
    attributions: Annotated[int, Field(ge=0, le=16)] = 0


class Serving(Strict):
    """The whole declaration; `features` are the names of the input's columns, in their order."""

    features: list[str] = Field(default_factory=list)
    # batching threads, a core each: more than one where runs of the graph are long
    instances: Annotated[int, Field(ge=1, le=16)] = 1
    fallback: Fallback = Fallback()
    breaker: Breaker | None = None
    response_cache: ResponseCache | None = None
    bands: list[Band] = Field(default_factory=list)
    reasons: dict[str, Code] = Field(default_factory=dict)  # reason code by feature

    @model_validator(mode="after")
    def _bands_rise(self) -> Self:
        bounds = [band.below for band in self.bands]
        if bounds and (bounds.pop() is not None or None in bounds):
            raise ValueError("the last band, and only that, has no `below`")
        if any(a >= b for a, b in pairwise(bounds) if a is not None and b is not None):
            raise ValueError("`below` rises from band to band")
        return self

    def require_features(self) -> None:
        """Raise InvalidArgument `FEATURE_UNKNOWN` for a name that is none of `features`."""
        used = set(self.reasons)
        if self.fallback.rule is not None:
            used |= expressions.read(self.fallback.rule).names
        for name in sorted(used.difference(self.features)):
            raise InvalidArgument(
                "FEATURE_UNKNOWN", f"the serving declaration names {name}, which is no feature"
            )
