"""One row takes a shorter way to the same bits as many rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from volary_features.domain.cells import unpacked
from volary_features.domain.instants import HOUR_US, MINUTE_US
from volary_features.domain.plans import LatestPlan, RollingPlan, plan_of
from volary_features.domain.view import read_view

from tests.unit.features.conftest import SALES, TOWN, WEATHER

ASKED = 40 * HOUR_US
READS = 400


def states_of(plan: RollingPlan | LatestPlan, rng: np.random.Generator) -> bytes:
    """Return the packed cells of an entity that was seen up to thirty times, or never."""
    count = int(rng.integers(0, 30))
    # on whole minutes: ties, and instants that lie on the edges of windows
    known = ASKED - rng.integers(-60, 30 * 60, count) * MINUTE_US
    values = {
        name: np.where(rng.random(count) < 0.2, np.nan, rng.integers(-9_999, 9_999, count) / 100)
        for name in plan.spec.columns()
    }
    ids = np.arange(1, count + 1, dtype=np.uint64)
    if isinstance(plan, RollingPlan):
        cells = plan.layout.records(known, ids, values)
    else:
        cells = plan.layout.records(known - rng.integers(0, 180) * MINUTE_US, known, ids, values)
    return plan.layout.merged([cells]).tobytes()


def by_many(plan: RollingPlan | LatestPlan, state: bytes, asked_us: int) -> np.ndarray:
    asked = np.array([asked_us, asked_us])
    cells, bounds = unpacked([state, state], plan.layout.dtype)
    if isinstance(plan, RollingPlan):
        return plan.values(plan.layout.totals(cells, bounds, plan.windows, asked))[:1]
    chosen = plan.layout.chosen(cells, bounds, asked)
    return plan.values(plan.layout.values(cells, chosen, asked, plan.spec.ttl))[:1]


def by_one(plan: RollingPlan | LatestPlan, state: bytes, asked_us: int) -> np.ndarray:
    cells = np.frombuffer(state, plan.layout.dtype)
    if isinstance(plan, RollingPlan):
        return plan.values_of_one(cells, asked_us)
    return plan.values(plan.layout.values_of_one(cells, asked_us, plan.spec.ttl))


@pytest.mark.parametrize("document", [SALES, WEATHER, TOWN], ids=lambda each: each["name"])
def test_one_row_has_the_bits_of_many(document: dict[str, Any]) -> None:
    plan = plan_of(read_view(document).spec)
    assert isinstance(plan, RollingPlan | LatestPlan)
    rng = np.random.default_rng(7)
    present = 0
    for _ in range(READS):
        state = states_of(plan, rng)
        asked_us = ASKED + int(rng.integers(-3, 4)) * MINUTE_US
        one, many = by_one(plan, state, asked_us), by_many(plan, state, asked_us)
        assert one.shape == many.shape
        assert one.tobytes() == many.tobytes()
        present += int(np.isfinite(one).sum())
    assert present > READS / 10  # it compared numbers, not only their absence
