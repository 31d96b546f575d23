"""Declared feature views: how features come from one source, or from the request itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator
from volary_kit.documents import Declared, Strict, check_data
from volary_kit.durations import DurationUs

from volary_features.domain.expression import Expression
from volary_features.domain.instants import DAY_US, Window, default_hop_us, nesting_fault

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,30}$")]
ResourceId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Person = Annotated[str, StringConstraints(min_length=1, max_length=128)]
LongestUs = Annotated[DurationUs, Field(gt=0, le=3660 * DAY_US)]
OnFailure = Literal["unavailable", "stale", "default"]
Aggregate = Literal["count", "mean", "sum", "min", "max"]


class WindowSpec(Strict):
    """A window; without a hop it takes the usual one of its length."""

    name: Label
    length: LongestUs
    hop: LongestUs | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept `3h` for `{name: 3h, length: 3h}`."""
        return {"name": value, "length": value} if isinstance(value, str) else value

    @property
    def window(self) -> Window:
        """The window itself."""
        return Window(self.length, self.hop or default_hop_us(self.length))


class AggregateFeature(Strict):
    """One aggregate, computed over every window of its view."""

    name: Name
    aggregate: Aggregate
    column: Name | None = None
    decimals: int = Field(default=0, ge=0, le=6)

    @model_validator(mode="after")
    def _has_its_column(self) -> Self:
        if (self.column is None) != (self.aggregate == "count"):
            raise ValueError("a count has no column, every other aggregate has one")
        return self


class ColumnFeature(Strict):
    """One column of the record that stands; its name is the column's unless given."""

    name: Name
    column: Name

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept `temp` for `{name: temp, column: temp}`."""
        return {"name": value, "column": value} if isinstance(value, str) else value


class ExpressionFeature(Strict):
    """One number from the fields of the request."""

    name: Name
    expression: Annotated[str, StringConstraints(min_length=1, max_length=500)]

    @field_validator("expression")
    @classmethod
    def _is_of_the_language(cls, text: str) -> str:
        Expression(text).check()
        return text


class _Sourced(Strict):
    """What views over a source have in common.

    `history`: how far behind the watermark a read may ask. `on_store_failure`: what stands
    when the online store does not answer.
    """

    description: str = Field(default="", max_length=2000)
    source: ResourceId
    entity: Name
    key_column: Name | None = None
    history: LongestUs = DAY_US
    on_store_failure: OnFailure = "unavailable"

    @property
    def key(self) -> str:
        """The column of the entity's key."""
        return self.key_column or self.entity


class RollingSpec(_Sourced):
    """Aggregates of an entity's records over windows that end at the asked instant."""

    kind: Literal["rolling"]
    windows: list[WindowSpec] = Field(min_length=1, max_length=8)
    features: list[AggregateFeature] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        fault = nesting_fault([each.window for each in self.windows])
        if fault is not None:
            raise ValueError(fault)
        _unique(self.feature_names())
        return self

    def feature_names(self) -> list[str]:
        """Return `{feature}_{window}` of every feature and window, in order."""
        return [
            f"{feature.name}_{window.name}" for feature in self.features for window in self.windows
        ]

    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return list(dict.fromkeys(f.column for f in self.features if f.column is not None))


class _OfOneRecord(_Sourced):
    """What views have in common whose features are columns of the record that stands."""

    features: list[ColumnFeature] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _unique(self.feature_names())
        return self

    def feature_names(self) -> list[str]:
        """Return the names of the features in order."""
        return [feature.name for feature in self.features]

    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return list(dict.fromkeys(feature.column for feature in self.features))


class LatestSpec(_OfOneRecord):
    """The newest record of an entity that is known at the asked instant and not too old."""

    kind: Literal["latest"]
    ttl: LongestUs | None = None


class LookupSpec(_OfOneRecord):
    """Reference data: a table without a time of its own, the same at every instant."""

    kind: Literal["lookup"]

    @property
    def ttl(self) -> None:
        """Nothing: it never grows old."""
        return


class RequestSpec(Strict):
    """Numbers computed from what comes with the request."""

    kind: Literal["request"]
    description: str = Field(default="", max_length=2000)
    fields: list[Name] = Field(default=[], max_length=64)
    features: list[ExpressionFeature] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _unique(self.feature_names())
        for feature in self.features:
            unknown = Expression(feature.expression).fields - set(self.fields)
            if unknown:
                raise ValueError(
                    f"{feature.name} reads {', '.join(sorted(unknown))}: not in fields"
                )
        return self

    def feature_names(self) -> list[str]:
        """Return the names of the features in order."""
        return [feature.name for feature in self.features]


SourcedSpec = RollingSpec | LatestSpec | LookupSpec
ViewSpec = Annotated[
    RollingSpec | LatestSpec | LookupSpec | RequestSpec, Field(discriminator="kind")
]


class FeatureView(Declared):
    """The document of kind `FeatureView`."""

    kind: Literal["FeatureView"]  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    name: ResourceId
    owner: Person
    on_call: Person
    spec: ViewSpec


def read_view(document: Mapping[str, Any]) -> FeatureView:
    """Return a declared view; raise InvalidArgument `DOCUMENT_INVALID` that names each fault."""
    return check_data(FeatureView, document, "feature_view")


def _unique(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"feature {name} is declared twice")
        seen.add(name)
