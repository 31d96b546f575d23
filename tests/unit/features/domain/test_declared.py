from __future__ import annotations

import copy
from typing import Any

import pytest
from volary_features.domain.feature_set import read_feature_set, schema_hash
from volary_features.domain.vectors import VectorPlan
from volary_features.domain.view import FeatureView, read_view
from volary_kit.documents import DocumentError
from volary_kit.errors import InvalidArgument

from tests.unit.features.conftest import SALES, SET, VIEWS, WEATHER, document


def changed(source: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(source)
    *parents, last = path.split(".")
    place: Any = found
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return found


def views(*documents: dict[str, Any]) -> dict[str, FeatureView]:
    return {each["name"]: read_view(each) for each in documents}


@pytest.mark.parametrize(
    ("source", "path", "value"),
    [
        (SALES, "spec.windows", []),
        (SALES, "spec.windows", ["0h"]),
        (SALES, "spec.windows", [{"name": "odd", "length": "1h", "hop": "7m"}, "1d"]),
        (SALES, "spec.features.0.aggregate", "median"),
        (SALES, "spec.features.0.column", "amount"),
        (SALES, "spec.features.1.decimals", 30),
        (SALES, "spec.features.1.name", "count"),
        (SALES, "spec.surprise", 1),
        (SALES, "spec.kind", "magic"),
        (SALES, "owner", ""),
        (SALES, "spec.on_store_failure", "zero"),
        (WEATHER, "spec.ttl", "for ever"),
        (WEATHER, "spec.features", ["temp", "temp"]),
        (VIEWS[3], "spec.fields", ["items"]),
        (VIEWS[3], "spec.features.0.expression", "open(1)"),
    ],
)
def test_a_broken_view_is_refused(source: dict[str, Any], path: str, value: Any) -> None:
    read_view(source)
    with pytest.raises(DocumentError):
        read_view(changed(source, path, value))


def test_a_struct_has_doubles_for_integers() -> None:
    assert read_view(changed(SALES, "spec.features.1.decimals", 2.0)) == read_view(SALES)


def test_features_of_a_rolling_view_are_named_by_their_windows() -> None:
    assert read_view(SALES).spec.feature_names()[:4] == [
        "count_1h",
        "count_day",
        "mean_1h",
        "mean_day",
    ]


@pytest.mark.parametrize("default", [float("nan"), float("inf"), None])
def test_a_default_is_a_finite_number(default: Any) -> None:
    with pytest.raises(DocumentError):
        read_feature_set(changed(SET, "spec.features.0.default", default))


def test_an_unknown_feature_is_named() -> None:
    broken = changed(SET, "spec.features.1.name", "sales.nothing")
    with pytest.raises(InvalidArgument) as caught:
        VectorPlan(read_feature_set(broken), views(*VIEWS)).check()
    assert "feature_set.document.spec.features[1].name" in caught.value.violations


def hash_of(feature_set: dict[str, Any], *documents: dict[str, Any]) -> str:
    return schema_hash(read_feature_set(feature_set), views(*documents))


def test_the_schema_hash_sees_what_changes_a_vector_and_nothing_else() -> None:
    first = hash_of(SET, *VIEWS)
    swapped = copy.deepcopy(SET)
    swapped["spec"]["features"].reverse()
    same = [
        (changed(SET, "owner", "somebody"), VIEWS),
        (changed(SET, "spec.features.0.description", "words"), VIEWS),
        (SET, [changed(SALES, "spec.history", "3h"), *VIEWS[1:]]),
    ]
    other = [
        (swapped, VIEWS),
        (changed(SET, "spec.features.0.default", 5), VIEWS),
        (SET, [changed(SALES, "spec.windows.1.hop", "30m"), *VIEWS[1:]]),
        (SET, [VIEWS[0], changed(WEATHER, "spec.ttl", "3h"), *VIEWS[2:]]),
    ]
    assert [hash_of(each, *documents) for each, documents in same] == [first] * len(same)
    hashes = {hash_of(each, *documents) for each, documents in other}
    assert first not in hashes
    assert len(hashes) == len(other)


def test_float32_members_are_rounded_once() -> None:
    spec = {"features": [{"name": "basket.items", "default": 0, "dtype": "float32"}]}
    plan = VectorPlan(read_feature_set(document("FeatureSet", "narrow", **spec)), views(VIEWS[3]))
    import numpy as np

    values, is_present = plan.assembled({"basket": np.array([[0.1, 0, 0], [1e300, 0, 0]])}, 2)
    assert values[:, 0].tolist() == [float(np.float32(0.1)), 0.0]
    assert is_present[:, 0].tolist() == [True, False]
