"""Names of models, versions and routes."""

from __future__ import annotations

import pytest
from volary_gateway.domain.names import VersionName


@pytest.mark.parametrize("model", ["flights", "flights.eu", "flights:eu", "a.b:c_d-e"])
def test_cluster_names_its_version_without_what_counters_give_a_meaning(model: str):
    version = VersionName("default", model, 3)
    assert not {".", ":"} & set(version.cluster)
    assert VersionName.of_cluster(version.cluster) == version
