"""One snapshot after the other: what a change costs, and that it makes no other difference."""

from __future__ import annotations

import random

import pytest
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Cause, Shadow, Traffic, Weight
from volary_gateway.xds import lints
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.mesh import Built, Mesh, snapshot_of
from volary_gateway.xds.snapshot import EMPTY, Table

from tests.unit.gateway.xds.test_delta import Proxy
from tests.unit.gateway.xds.test_snapshot import canary, edge

MODELS = [ModelName("default", f"m{n}") for n in range(20)]
READY = {VersionName.of(name, v): ("127.0.0.1:1",) for name in MODELS for v in (1, 2)}


def traffic_of(name: ModelName, generation: int, share: int, **more) -> Traffic:
    weights = (Weight(2, share), Weight(1, 10_000 - share))
    return Traffic(name, generation, weights, production=1, **more)


def mesh_of(traffic: dict[ModelName, Traffic]) -> Mesh:
    return Mesh(edge(), tuple(traffic.values()), READY, ("127.0.0.1:1",))


def test_steps_one_by_one_give_what_the_whole_state_gives():
    drawn = random.Random(7)
    traffic = {name: traffic_of(name, 1, 0) for name in MODELS}
    built = Built().of(mesh_of(traffic))
    for generation in range(2, 60):
        name = drawn.choice(MODELS)
        traffic[name] = traffic_of(
            name,
            generation,
            drawn.choice((0, 100, 10_000)),
            cause=drawn.choice((Cause.STEP, Cause.BRAKE)),
            shadow=drawn.choice((None, Shadow(3, 500))),
        )
        before, built = built.snapshot, built.with_traffic(traffic[name])
        lints.check(built.snapshot, before)
    whole = snapshot_of(mesh_of(traffic))
    assert built.snapshot.version == whole.version
    for kind in xds.ORDER:
        found = {n: r.version for n, r in built.snapshot.resources[kind].items()}
        assert found == {n: r.version for n, r in whole.resources[kind].items()}
    assert built.of(mesh_of(traffic)).snapshot is built.snapshot


def test_step_makes_one_table_anew():
    built = Built().of(mesh_of({name: traffic_of(name, 1, 0) for name in MODELS}))
    after = built.with_traffic(traffic_of(MODELS[3], 2, 5_000)).snapshot
    before = built.snapshot.resources
    moved = {kind for kind in xds.ORDER if after.resources[kind] is not before[kind]}
    assert moved == {xds.ROUTES}
    assert after.resources[xds.ROUTES].since(before[xds.ROUTES]) == {MODELS[3].scope}


def test_step_that_is_dropped_leaves_nothing_behind():
    traffic = {name: traffic_of(name, 1, 0) for name in MODELS}
    built = Built().of(mesh_of(traffic))
    built.with_traffic(traffic_of(MODELS[0], 2, 5_000))
    traffic[MODELS[1]] = traffic_of(MODELS[1], 2, 5_000)
    after = built.with_traffic(traffic[MODELS[1]])
    assert after.snapshot.version == snapshot_of(mesh_of(traffic)).version


def test_step_before_any_mesh_is_refused():
    with pytest.raises(ValueError, match="a mesh comes before"):
        Built().with_traffic(canary())


def test_table_compares_itself_with_one_that_was_not_just_before():
    items = [*snapshot_of(Mesh(edge())).resources[xds.CLUSTER].values()]
    first = Table(items)
    second = first.replaced([items[0].name], [])
    third = second.replaced([], [items[0]])
    assert first.replaced([], items) is first
    assert second.since(first) == {items[0].name}
    assert third.since(first) == frozenset()
    assert third.since(EMPTY.resources[xds.CLUSTER]) == {item.name for item in items}


def test_envoy_that_missed_snapshots_still_gets_all_that_changed():
    traffic = {name: traffic_of(name, 1, 0) for name in MODELS}
    built = Built().of(mesh_of(traffic))
    proxy = Proxy()
    proxy.settle(built.snapshot)
    proxy.log.clear()
    for name in MODELS[:5]:
        built = built.with_traffic(traffic_of(name, 2, 100))
    proxy.settle(built.snapshot)
    assert proxy.log == [
        ("RouteConfiguration", tuple(sorted(name.scope for name in MODELS[:5])), ())
    ]
    assert proxy.stream.holds(built.snapshot)
