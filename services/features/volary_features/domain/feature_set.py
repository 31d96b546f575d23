"""Declared feature sets: the ordered features of a vector, each with what stands for nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from volary_kit.documents import Declared, Strict, check_data

from volary_features.domain.view import FeatureView, Person, RequestSpec, ResourceId

FeatureName = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}\.[a-z][a-z0-9_]{0,126}$")
]
NAMELESS = {"description", "on_store_failure", "history"}  # they change no value of a vector


class MemberSpec(Strict):
    """One number of the vector: `{view}.{feature}`, and its default."""

    name: FeatureName
    default: float = Field(allow_inf_nan=False)
    dtype: Literal["float32", "float64"] = "float64"
    unit: str = Field(default="", max_length=64)
    description: str = Field(default="", max_length=500)

    @property
    def view(self) -> str:
        """The view that it is of."""
        return self.name.partition(".")[0]

    @property
    def feature(self) -> str:
        """Its name within the view."""
        return self.name.partition(".")[2]


class FeatureSetSpec(Strict):
    """The features in order."""

    description: str = Field(default="", max_length=2000)
    features: list[MemberSpec] = Field(min_length=1, max_length=2000)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [member.name for member in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"declared twice: {', '.join(twice)}")
        return self


class FeatureSet(Declared):
    """The document of kind `FeatureSet`."""

    kind: Literal["FeatureSet"]  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    name: ResourceId
    owner: Person
    on_call: Person
    spec: FeatureSetSpec

    def view_names(self) -> list[str]:
        """Return the views behind it, in order of first use."""
        return list(dict.fromkeys(member.view for member in self.spec.features))


def read_feature_set(document: Mapping[str, Any]) -> FeatureSet:
    """Return a declared set; raise InvalidArgument `DOCUMENT_INVALID` that names each fault."""
    return check_data(FeatureSet, document, "feature_set")


def entities_of(views: Mapping[str, FeatureView]) -> list[str]:
    """Return the entities whose keys a read must give."""
    specs = [view.spec for view in views.values()]
    return sorted({spec.entity for spec in specs if not isinstance(spec, RequestSpec)})


def request_fields_of(views: Mapping[str, FeatureView]) -> list[str]:
    """Return the request fields that a read must give."""
    specs = [view.spec for view in views.values()]
    return sorted({name for spec in specs if isinstance(spec, RequestSpec) for name in spec.fields})


def schema_hash(feature_set: FeatureSet, views: Mapping[str, FeatureView]) -> str:
    """Return the SHA-256 of everything that changes what a vector means."""
    content = {
        "features": [
            {"name": each.name, "default": each.default, "dtype": each.dtype}
            for each in feature_set.spec.features
        ],
        "views": {
            name: views[name].spec.model_dump(mode="json", exclude=NAMELESS)
            for name in feature_set.view_names()
        },
    }
    return digest_of(content)


def digest_of(content: Any) -> str:
    """Return the SHA-256 of plain data in canonical form: sorted keys, whole floats as integers."""
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_canonical(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
