from __future__ import annotations

import pytest
from volary_gateway.domain.evidence import (
    LATENCY_EDGES_US,
    Attempt,
    Counts,
    Variant,
    bucket,
    is_error_event,
    latency_counts,
    user_hash,
)
from volary_gateway.domain.names import ModelName, RouteName

VARIANT = Variant("default", "flights", "r1", "canary", 3, 2, is_shadow=False)


def attempt(code: int = 0, tier: str = "model", latency_us: int = 150, **more) -> Attempt:
    return Attempt(VARIANT, code, tier, latency_us, more.pop("ended_us", 5), **more)


def test_counts_add_up_by_outcome_and_latency():
    counts = Counts()
    for one in (attempt(), attempt(), attempt(code=13, tier=""), attempt(tier="rule")):
        counts.add(one)
    assert counts.outcomes == {
        (VARIANT, 0, "model"): 2,
        (VARIANT, 13, ""): 1,
        (VARIANT, 0, "rule"): 1,
    }
    assert sum(counts.latencies.values()) == 4


def test_answer_of_another_tier_is_an_error_of_the_version():
    assert is_error_event(0, "rule")
    assert not is_error_event(0, "model")
    assert not is_error_event(0, "")  # a method that runs no model


@pytest.mark.parametrize("code", [-1, 2, 4, 8, 9, 11, 13, 14, 15])
def test_failure_of_the_version_is_an_error_event(code: int):
    assert is_error_event(code, "none")


@pytest.mark.parametrize("code", [1, 3, 5, 7, 16])
def test_fault_of_the_caller_is_none(code: int):
    assert not is_error_event(code, "none")


def test_retries_are_counted_and_are_no_events_of_their_own():
    counts = Counts()
    for number, code in enumerate((14, 14, 0), 1):
        counts.add(attempt(code=code, number=number, user="ann"))
    assert counts.outcomes == {(VARIANT, 14, "model"): 2, (VARIANT, 0, "model"): 1}
    assert counts.firsts == {(VARIANT, 14, "model"): 1}
    assert sum(counts.latencies.values()) == 1
    assert list(counts.users.values()) == [True]


def test_an_attempt_that_met_no_replica_is_counted_and_says_nothing_of_the_version():
    counts = Counts()
    counts.add(attempt(code=-1, tier="", user="ann", has_met=False))
    counts.add(attempt(number=2, user="ann"))  # where it was tried again it is no event either
    assert counts.outcomes == {(VARIANT, -1, ""): 1, (VARIANT, 0, "model"): 1}
    assert [*counts.firsts, *counts.latencies, *counts.users] == []


def test_user_is_counted_once_and_with_the_first_error():
    counts = Counts()
    counts.add(attempt(user="ann"))
    counts.add(attempt(user="ann", code=13))
    counts.add(attempt(user="ann"))
    counts.add(attempt(user="bob"))
    assert sorted(counts.users.values()) == [False, True]
    assert all(b"ann" not in user for _, user in counts.users)


def test_user_hash_differs_between_models():
    assert user_hash(ModelName("p", "a"), "ann") != user_hash(ModelName("p", "b"), "ann")


def test_edges_rise_and_hold_their_own_value():
    assert list(LATENCY_EDGES_US) == sorted(set(LATENCY_EDGES_US))
    assert [LATENCY_EDGES_US[at] for at in (0, 10, -1)] == [100, 1_000, 63_095_734]
    assert bucket(100) == 0
    assert bucket(101) == 1
    assert bucket(10**12) == len(LATENCY_EDGES_US)
    assert latency_counts([(0, 2), (len(LATENCY_EDGES_US), 1)])[-1] == 1


def test_route_name_comes_back_as_it_went():
    for route in (RouteName("m", "r", "canary", 4), RouteName("m", "", "", 1)):
        assert RouteName.parse(str(route)) == route
    assert RouteName.parse("pinned") is None
    assert RouteName.parse("a/b/c/x") is None
