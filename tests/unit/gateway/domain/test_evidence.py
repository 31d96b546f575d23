from __future__ import annotations

from volary_gateway.domain.evidence import (
    LATENCY_EDGES_US,
    Attempt,
    Counts,
    Variant,
    bucket,
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
    assert attempt(tier="rule").is_error
    assert attempt(code=14).is_error
    assert attempt(code=-1).is_error
    assert not attempt().is_error
    assert not attempt(code=1).is_error  # the caller left
    assert not attempt(code=3).is_error  # the caller asked for nonsense


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
