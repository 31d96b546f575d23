"""What stands around a version: breaker, tiers, calibration, bands, explanations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import factorial
from typing import Any

import numpy as np
import pytest
from volary_inference.domain.batching import BatchPolicy, RunFailed
from volary_inference.domain.decisions import Bands, Calibration
from volary_inference.domain.engine import PythonEngine
from volary_inference.domain.events import EventRing
from volary_inference.domain.explaining import background_of, batched_score, explain
from volary_inference.domain.failpoints import Failpoints
from volary_inference.domain.predictions import (
    About,
    InferReply,
    InferRequest,
    Origin,
    VersionKey,
)
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.tensors import Tensor
from volary_inference.domain.versions import Serving, State, Version, Versions
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package
from volary_inference.service import injected_error
from volary_kit.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    Unavailable,
    VolaryError,
)
from volary_kit.serving import Band
from volary_kit.statuses import code_of
from volary_kit.testing import ManualClock

from . import graphs

KEY = VersionKey("p", "m", 1)
FEATURES = ["view.a", "view.b", "c"]
GOLDEN = {
    "inputs": {"features": [[0, 0, 0], [1, 0, -1], [2, 2, 2]]},
    "outputs": {"probability": [[0.5], [0.5], [0.99752738]]},
}


class Rig:
    """One version behind a real engine, whose graph fails when it is told to."""

    def __init__(self, declared: Mapping[str, Any], *, calibration: Any = None) -> None:
        self.clock = ManualClock()
        self.ring = EventRing(100)
        self.fails = False
        loader = Loader(BatchPolicy(max_rows=8), self.clock)
        package = Package(
            Description("sha256:1"),
            graphs.sigmoid_sum(),
            GOLDEN,
            {"features": FEATURES, **declared},
            calibration,
        )
        graph = loader.open(package)
        guard = loader.guard(graph.signature, package)
        self._graph, self._run = graph, graph.run
        graph.run = self.run  # the one seam that a test needs: a graph that can fail
        self.serving: Serving = loader.serve(KEY, graph, RunTimes(), guard)
        versions = Versions()
        versions.put(Version(KEY, "sha256:1", State.READY, self.serving))
        self.engine = PythonEngine(
            versions, self.ring, self.clock, Failpoints(), error_of=injected_error, code_of=code_of
        )
        self.rows_run = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.fails:
            raise RunFailed("told to")
        self.rows_run += len(feeds["features"])
        return self._run(feeds)

    def ask(self, *row: float, entity: str = "") -> InferReply:
        about = About(entity_keys={"plane": entity} if entity else {})
        inputs = (Tensor("features", "FP32", np.array([row], np.float32)),)
        request = InferRequest(KEY, inputs, Origin("k"), about=about)
        return self.engine.submit(request, self.clock.monotonic_s() + 5)

    def failure(self, *row: float) -> VolaryError:
        with pytest.raises(VolaryError) as caught:
            self.ask(*row)
        return caught.value

    def close(self) -> None:
        self.serving.batcher.close(5)


def score(reply: InferReply) -> float:
    return float(reply.outputs[0].array[0, 0])


def test_without_a_declaration_a_failure_is_a_failure() -> None:
    rig = Rig({})
    rig.fails = True
    assert rig.failure(0, 0, 0).reason == "RUN_FAILED"
    rig.close()


def test_the_tiers_answer_in_their_order_and_say_so() -> None:
    rig = Rig(
        {
            "fallback": {
                "cache": {"max_age": "10s"},
                "rule": "if(view.a > 0, 0.25, log(c))",
                "none": True,
            }
        }
    )
    said = rig.ask(1, 2, 3, entity="N1")
    assert (said.provenance.tier, said.provenance.batch_size) == ("model", 1)
    rig.fails = True
    cached = rig.ask(9, 9, 9, entity="N1")  # the same entity, whatever its features are now
    assert (cached.provenance.tier, score(cached)) == ("cache", score(said))
    assert cached.provenance.confidence is None
    ruled = rig.ask(1, 2, 3)  # no entity: another input than any before
    assert (ruled.provenance.tier, score(ruled)) == ("rule", 0.25)
    nothing = rig.ask(-1, 0, -1)  # the rule has no value
    assert (nothing.provenance.tier, nothing.outputs) == ("none", ())
    rig.clock.advance(11)
    assert rig.ask(9, 9, 9, entity="N1").provenance.tier == "rule"  # the cached one is too old
    tiers = [record.tier for record in rig.ring.peek(10, 0)]
    assert tiers == ["model", "cache", "rule", "none", "rule"]
    rig.close()


def test_the_same_input_is_answered_from_the_cache() -> None:
    rig = Rig({"fallback": {"cache": {}}})
    said = rig.ask(1, 2, 3)
    rig.fails = True
    assert score(rig.ask(1, 2, 3)) == score(said)
    assert rig.failure(1, 2, 4).reason == "RUN_FAILED"
    rig.close()


def test_a_callers_own_mistake_is_never_answered_by_a_tier() -> None:
    rig = Rig({"fallback": {"none": True}})
    assert isinstance(rig.failure(1, 2), InvalidArgument)
    rig.close()


def test_the_breaker_opens_after_failures_and_closes_after_one_good_call() -> None:
    rig = Rig({"breaker": {"failures": 0.5, "calls": 4, "open_for": "5s"}})
    for fails in (False, True, False):
        rig.fails = fails
        (rig.failure if fails else rig.ask)(0, 0, 0)
    rig.fails = True
    assert isinstance(rig.failure(0, 0, 0), Internal)  # 2 of 4: it opens
    rig.fails, before = False, rig.rows_run
    turned = rig.failure(0, 0, 0)
    assert (turned.reason, turned.retry_after_s) == ("BREAKER_OPEN", 5.0)
    assert isinstance(turned, Unavailable)
    assert rig.rows_run == before
    rig.clock.advance(5)
    rig.fails = True
    assert isinstance(rig.failure(0, 0, 0), Internal)  # the one that tries
    assert rig.failure(0, 0, 0).reason == "BREAKER_OPEN"
    rig.clock.advance(5)
    rig.fails = False
    rig.ask(0, 0, 0)
    rig.ask(0, 0, 0)
    rig.close()


def test_confidence_is_that_of_the_calibrated_probability() -> None:
    assert Rig({}).ask(0, 0, 0).provenance.confidence == 0.5
    rig = Rig({}, calibration={"scores": [0.0, 0.5, 1.0], "probabilities": [0.0, 0.2, 1.0]})
    found = rig.ask(0, 0, 0).provenance
    assert (found.confidence, found.is_calibrated) == (pytest.approx(0.8), True)
    rig.close()


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"scores": [0.5, 0.1], "probabilities": [0, 1]},
        {"scores": [0.1, 0.5], "probabilities": [0, 1.5]},
        {"scores": [0.1], "probabilities": [0, 1]},
        {"scores": ["x"], "probabilities": [0]},
        {"scores": [float("nan")], "probabilities": [0.5]},
    ],
)
def test_a_calibration_that_is_no_rising_list_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Calibration.from_document(document)


def test_a_score_lies_in_one_band_and_its_reasons_are_declared() -> None:
    rig = Rig(
        {
            "bands": [
                {"below": 0.5, "code": "LOW", "action": "go"},
                {"code": "HIGH", "action": "hold", "attributions": 1},
            ]
        }
    )
    assert rig.ask(-1, 0, 0).provenance.decision.action == "go"
    assert rig.ask(0, 0, 0).provenance.decision.reason_codes == ("HIGH",)
    bands = Bands(
        [Band(code="HIGH", action="hold", attributions=1)], {"c": "C_IS_HIGH", "view.a": "A"}
    )
    assert bands.decide(0.9, ["view.b", "c", "view.a"]).reason_codes == ("HIGH", "C_IS_HIGH")
    rig.close()


@pytest.mark.parametrize(
    "declared",
    [
        {"fallback": {"rule": "nothing + 1"}},
        {"fallback": {"rule": "1 +"}},
        {"reasons": {"nothing": "X"}},
        {"bands": [{"below": 0.5, "code": "A", "action": "a"}]},
        {"bands": [{"below": b, "code": "A", "action": "a"} for b in (0.5, 0.2, None)]},
        {"features": ["a"], "fallback": {"rule": "a"}},
        {"tier": "x"},
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Rig(declared)


def exact(row: np.ndarray, background: np.ndarray, function: Any) -> np.ndarray:
    """Shapley values by their definition, over all subsets."""
    width = len(row)
    found = np.zeros(width)
    for i in range(width):
        others = [j for j in range(width) if j != i]
        for size in range(width):
            weight = factorial(size) * factorial(width - size - 1) / factorial(width)
            for subset in itertools.combinations(others, size):
                with_i, without = background.copy(), background.copy()
                with_i[:, [*subset, i]] = row[[*subset, i]]
                without[:, list(subset)] = row[list(subset)]
                found[i] += weight * (function(with_i) - function(without)).mean()
    return found


def test_sampled_values_add_up_and_come_near_the_exact_ones() -> None:
    generator = np.random.default_rng(0)
    background = generator.normal(size=(16, 4))
    row = np.array([1.0, -2.0, 0.5, 3.0])

    def function(rows: np.ndarray) -> np.ndarray:
        return rows[:, 0] * rows[:, 1] + 2 * rows[:, 3]  # the third does nothing

    found = explain(row, background, function, 5_000)
    total = function(row[None])[0]
    assert found.base + found.contributions.sum() == pytest.approx(total)
    np.testing.assert_allclose(found.contributions, exact(row, background, function), atol=0.1)
    assert found.contributions[2] == 0
    assert found.evaluations == 5_000
    again = explain(row, background, function, 5_000)
    assert (again.contributions == found.contributions).all()
    with pytest.raises(InvalidArgument, match="at least 5"):
        explain(row, background, function, 4)


def test_explaining_runs_within_its_budget_through_the_batcher() -> None:
    rig = Rig({})
    row = np.array([1.0, 0.0, -3.0], np.float32)
    said = score(rig.ask(*row.tolist()))
    before = rig.rows_run
    ask = batched_score(rig.serving, rig.clock.monotonic_s() + 5, rig.clock)
    found = explain(row, background_of(rig.serving), ask, 50)
    assert rig.rows_run - before == found.evaluations == 48
    assert found.base + found.contributions.sum() == pytest.approx(said, abs=1e-6)
    assert found.contributions.argmin() == 2
    rig.serving.guard.background = None
    with pytest.raises(FailedPrecondition):
        background_of(rig.serving)
    rig.close()
