"""Feature vectors: the numbers of views put in the order of a set, with defaults for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from volary_kit.errors import InvalidArgument

from volary_features.domain.feature_set import (
    FeatureSet,
    entities_of,
    request_fields_of,
    schema_hash,
)
from volary_features.domain.plans import LatestPlan, RequestPlan, RollingPlan, ViewPlan, plan_of
from volary_features.domain.quanta import Numbers
from volary_features.domain.view import FeatureView

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VectorPlan:
    """A feature set with the views behind it, ready to compute."""

    feature_set: FeatureSet
    views: Mapping[str, FeatureView]

    def check(self) -> None:
        """Raise InvalidArgument when the set names a feature that its view lacks."""
        for place, member in enumerate(self.feature_set.spec.features):
            if member.feature not in self.views[member.view].spec.feature_names():
                raise InvalidArgument(
                    "FEATURE_UNKNOWN",
                    f"view {member.view} has no feature {member.feature}",
                    {"feature": member.name},
                    field=f"feature_set.document.spec.features[{place}].name",
                )

    @cached_property
    def plans(self) -> Mapping[str, ViewPlan]:
        """The plan of each view."""
        return {name: plan_of(view.spec) for name, view in self.views.items()}

    @cached_property
    def sourced(self) -> Mapping[str, RollingPlan | LatestPlan]:
        """The plans of the views over sources."""
        plans = self.plans.items()
        return {name: plan for name, plan in plans if not isinstance(plan, RequestPlan)}

    @cached_property
    def schema_hash(self) -> str:
        """Hash of everything that changes what a vector means."""
        return schema_hash(self.feature_set, self.views)

    @cached_property
    def names(self) -> list[str]:
        """`{view}.{feature}`, in order."""
        return [member.name for member in self.feature_set.spec.features]

    @cached_property
    def defaults(self) -> Numbers:
        """What stands for nothing, in order."""
        return np.array([member.default for member in self.feature_set.spec.features])

    @cached_property
    def entities(self) -> list[str]:
        """Entities whose keys a read must give."""
        return entities_of(self.views)

    @cached_property
    def request_fields(self) -> list[str]:
        """Request fields that a read must give."""
        return request_fields_of(self.views)

    @cached_property
    def _places(self) -> list[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Per view: which columns of it go to which places of the vector."""
        members = self.feature_set.spec.features
        found = []
        for name, view in self.views.items():
            names = view.spec.feature_names()
            mine = [place for place, member in enumerate(members) if member.view == name]
            columns = [names.index(members[place].feature) for place in mine]
            found.append((name, np.array(columns, dtype=np.int64), np.array(mine, dtype=np.int64)))
        return found

    @cached_property
    def _narrow(self) -> npt.NDArray[np.int64]:
        """Places of the numbers that are rounded to float32."""
        members = self.feature_set.spec.features
        return np.array([i for i, each in enumerate(members) if each.dtype == "float32"], np.int64)

    def assembled(self, values: Mapping[str, Numbers], rows: int) -> tuple[Numbers, Mask]:
        """Return vectors (rows x features) and which of their numbers are not defaults."""
        vectors = np.empty((rows, len(self.names)))
        for view, columns, places in self._places:
            vectors[:, places] = values[view][:, columns]
        if len(self._narrow):
            with np.errstate(over="ignore"):
                vectors[:, self._narrow] = vectors[:, self._narrow].astype(np.float32)
        # a number too large for its dtype is no number that a model could take
        is_present = np.isfinite(vectors)
        return np.where(is_present, vectors, self.defaults), is_present
