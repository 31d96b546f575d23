from __future__ import annotations

import pytest
from volary_gateway.domain.names import ModelName
from volary_gateway.domain.traffic import (
    Cause,
    Change,
    Shadow,
    Traffic,
    Weight,
    brake,
    roll_back,
    set_traffic,
)
from volary_kit.errors import Aborted, FailedPrecondition, InvalidArgument

MODEL = ModelName("default", "flights")
NOW = 1_000
EVERY = frozenset({1, 2, 3})


def ready(*versions: int):
    return lambda version: version in (versions or EVERY)


def split(*pairs: tuple[int, int]) -> tuple[Weight, ...]:
    return tuple(Weight(*pair) for pair in pairs)


def serving(version: int = 1) -> Traffic:
    return set_traffic(Traffic(MODEL), Change(0, split((version, 10_000))), ready(), NOW)


def canary() -> Traffic:
    change = Change(1, split((2, 1_000), (1, 9_000)), rollout="r1", step="canary", cause=Cause.STEP)
    return set_traffic(serving(), change, ready(), NOW)


def test_first_write_makes_the_last_version_production():
    traffic = serving()
    assert (traffic.generation, traffic.production, traffic.previous) == (1, 1, 0)
    assert traffic.weights == split((1, 10_000))


def test_write_of_an_old_author_is_refused_and_says_what_happened_since():
    with pytest.raises(Aborted) as refused:
        set_traffic(canary(), Change(1, split((2, 10_000))), ready(), NOW)
    assert refused.value.reason == "STALE_GENERATION"
    assert refused.value.metadata["generation"] == "2"
    assert refused.value.metadata["cause"] == "step"


def test_write_of_a_future_generation_is_refused_too():
    with pytest.raises(Aborted):
        set_traffic(serving(), Change(7, split((1, 10_000))), ready(), NOW)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (split((1, 9_999)), "WEIGHTS_TOTAL"),
        (split((1, 10_000), (2, 1)), "WEIGHTS_TOTAL"),
        (split((1, 5_000), (1, 5_000)), "VERSION_TWICE"),
    ],
)
def test_split_that_does_not_add_up_is_refused(weights: tuple[Weight, ...], reason: str):
    with pytest.raises(InvalidArgument) as refused:
        set_traffic(Traffic(MODEL), Change(0, weights), ready(), NOW)
    assert refused.value.reason == reason
    assert list(refused.value.violations) == ["weights"]


def test_version_that_is_not_ready_gets_no_traffic():
    with pytest.raises(FailedPrecondition) as refused:
        set_traffic(serving(), Change(1, split((2, 1), (1, 9_999))), ready(1), NOW)
    assert refused.value.reason == "VERSION_NOT_READY"
    assert refused.value.metadata["version"] == "2"


def test_version_without_weight_need_not_be_ready():
    after = set_traffic(serving(), Change(1, split((2, 0), (1, 10_000))), ready(1), NOW)
    assert after.weight_of(2) == 0


def test_shadow_must_be_ready_and_must_not_serve():
    with pytest.raises(FailedPrecondition):
        change = Change(1, split((1, 10_000)), shadow=Shadow(2, 10_000))
        set_traffic(serving(), change, ready(1), NOW)
    with pytest.raises(InvalidArgument):
        change = Change(1, split((1, 10_000)), shadow=Shadow(1, 10_000))
        set_traffic(serving(), change, ready(), NOW)


def test_promotion_remembers_the_way_back():
    change = Change(2, split((2, 10_000)), cause=Cause.PROMOTE, production=2)
    promoted = set_traffic(canary(), change, ready(), NOW)
    assert (promoted.production, promoted.previous) == (2, 1)
    back = roll_back(promoted, 0, "principals/ann", "slow", ready(), NOW)
    assert (back.production, back.previous, back.generation) == (1, 2, 4)
    assert back.weights == split((1, 10_000))


def test_break_glass_in_a_rollout_goes_to_the_baseline_and_fences_the_rollout_off():
    back = roll_back(canary(), 0, "principals/ann", "errors", ready(), NOW)
    assert back.weights == split((1, 10_000))
    assert (back.cause, back.rollout, back.generation) == (Cause.BREAK_GLASS, "", 3)
    with pytest.raises(Aborted):
        set_traffic(back, Change(2, split((2, 10_000))), ready(), NOW)


def test_break_glass_needs_somewhere_to_go():
    with pytest.raises(FailedPrecondition) as refused:
        roll_back(serving(), 0, "principals/ann", "errors", ready(), NOW)
    assert refused.value.reason == "NO_PREVIOUS_VERSION"


def test_brake_lowers_only_a_candidate_and_never_raises():
    braked = brake(canary(), 2, 100, "principals/ann", "", NOW)
    assert braked.weights == split((2, 100), (1, 9_900))
    assert (braked.cause, braked.generation) == (Cause.BRAKE, 3)
    with pytest.raises(InvalidArgument):
        brake(canary(), 2, 1_001, "principals/ann", "", NOW)
    with pytest.raises(FailedPrecondition):
        brake(canary(), 1, 0, "principals/ann", "", NOW)


def test_route_names_the_step_and_its_generation():
    assert str(canary().route) == "flights/r1/canary/2"
    assert str(serving().route) == "flights/-/-/1"
