from __future__ import annotations

from dataclasses import replace

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import (
    Cause,
    MissingKey,
    Shadow,
    Stickiness,
    Traffic,
    Weight,
)
from volary_gateway.xds import lints
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.clusters import HTTP_OPTIONS
from volary_gateway.xds.edge import Edge, edge_methods
from volary_gateway.xds.mesh import Mesh, snapshot_of
from volary_gateway.xds.packing import pack
from volary_gateway.xds.routes import LUA
from volary_gateway.xds.snapshot import EMPTY, Snapshot, TypeUrl, resource
from volary_kit.errors import Internal

MODEL = ModelName("default", "flights")
V1, V2 = VersionName.of(MODEL, 1), VersionName.of(MODEL, 2)
READY = {V1: ("127.0.0.1:1", "127.0.0.1:2"), V2: ("127.0.0.1:2",)}


def edge() -> Edge:
    return Edge("127.0.0.1:9", '{"keys": []}', b"", edge_methods(), {"registry": "127.0.0.1:3"})


def canary(generation: int = 2, share: int = 1_000, **more) -> Traffic:
    weights = (Weight(2, share), Weight(1, 10_000 - share))
    step = {"rollout": "r1", "step": "canary", "cause": Cause.STEP} | more
    return Traffic(MODEL, generation, weights, production=1, **step)


def mesh(*traffic: Traffic, **more) -> Mesh:
    return Mesh(edge(), traffic or (canary(),), more.pop("ready", READY), ("127.0.0.1:1",), **more)


def routes_of(snapshot: Snapshot, model: ModelName = MODEL) -> route_pb2.RouteConfiguration:
    body = snapshot.resources[xds.ROUTES][model.scope].body
    return route_pb2.RouteConfiguration.FromString(body.value)


def split_of(snapshot: Snapshot):
    return [
        r for r in routes_of(snapshot).virtual_hosts[0].routes if r.route.weighted_clusters.clusters
    ]


def without(snapshot: Snapshot, kind: TypeUrl, name: str) -> Snapshot:
    return changed(snapshot, kind, lambda items: [i for i in items if i.name != name])


def changed(snapshot: Snapshot, kind: TypeUrl, change) -> Snapshot:
    items = {of: list(named.values()) for of, named in snapshot.resources.items()}
    return Snapshot.of(items | {kind: change(items[kind])})


def with_cluster(snapshot: Snapshot, change) -> Snapshot:
    def edit(items):
        cluster = cluster_pb2.Cluster.FromString(
            next(i for i in items if i.name == V1.cluster).body.value
        )
        change(cluster)
        return [i for i in items if i.name != V1.cluster] + [resource(V1.cluster, cluster)]

    return changed(snapshot, xds.CLUSTER, edit)


def with_routes(snapshot: Snapshot, change) -> Snapshot:
    def edit(items):
        routes = routes_of(snapshot)
        change(routes.virtual_hosts[0])
        return [i for i in items if i.name != MODEL.scope] + [resource(MODEL.scope, routes)]

    return changed(snapshot, xds.ROUTES, edit)


def findings(snapshot: Snapshot) -> str:
    return "; ".join(lints.lint(snapshot))


def test_snapshot_is_sound():
    snapshot = snapshot_of(mesh())
    assert lints.consistent(snapshot)
    assert findings(snapshot) == ""
    lints.check(snapshot, EMPTY)


def test_same_state_gives_the_same_version_whatever_the_order():
    other = Traffic(ModelName("default", "fares"), 1, (Weight(1, 10_000),), production=1)
    ready = READY | {VersionName("default", "fares", 1): ("127.0.0.1:1",)}
    first = snapshot_of(mesh(canary(), other, ready=ready))
    second = snapshot_of(mesh(other, canary(), ready=dict(reversed(ready.items()))))
    assert first.version == second.version


def test_every_change_of_state_changes_the_version():
    states = [
        mesh(),
        mesh(canary(generation=3)),
        mesh(canary(share=2_000)),
        mesh(canary(shadow=Shadow(2, 10))),
        mesh(revoked=("key",)),
        mesh(ready=READY | {V2: ("127.0.0.1:3",)}),
        mesh(canary(stickiness=Stickiness("user", "salt"))),
        mesh(canary(cause=Cause.BRAKE)),
    ]
    assert len({snapshot_of(state).version for state in states}) == len(states)


def test_step_changes_one_route_configuration_and_nothing_else():
    before, after = snapshot_of(mesh()), snapshot_of(mesh(canary(3, 5_000)))
    moved = {
        (kind, name)
        for kind, items in after.resources.items()
        for name, item in items.items()
        if before.resources[kind][name].version != item.version
    }
    assert moved == {(xds.ROUTES, MODEL.scope)}
    lints.check(after, before)


def test_what_is_no_step_is_pushed_apart():
    before = snapshot_of(mesh())
    aside = before.resources[xds.ROUTES][f"{MODEL.scope}/aside"]
    promoted = snapshot_of(mesh(replace(canary(3, 10_000), production=2)))
    loaded = snapshot_of(mesh(ready=READY | {VersionName.of(MODEL, 3): READY[V1]}))
    for after in (promoted, loaded):
        assert after.resources[xds.ROUTES][f"{MODEL.scope}/aside"].version != aside.version
    assert loaded.resources[xds.ROUTES][MODEL.scope] == before.resources[xds.ROUTES][MODEL.scope]


def test_candidate_is_first_and_the_split_carries_version_and_route():
    [route] = split_of(snapshot_of(mesh()))
    shares = route.route.weighted_clusters.clusters
    assert [(s.name, s.weight.value) for s in shares] == [(V2.cluster, 1_000), (V1.cluster, 9_000)]
    assert route.name == "flights/r1/canary/2"
    added = {h.header.key: h.header.value for h in route.request_headers_to_add}
    assert added == {"volary-route": "flights/r1/canary/2"}
    assert shares[0].request_headers_to_add[0].header.value == "2"


def test_shadow_carries_its_own_version():
    [route] = split_of(snapshot_of(mesh(canary(shadow=Shadow(2, 2_500)))))
    [mirror] = route.route.request_mirror_policies
    headers = {m.append.header.key: m.append.header.value for m in mirror.request_headers_mutations}
    marks = {"volary-version": "2", "volary-shadow": "true"}
    assert headers == marks | {"x-envoy-max-retries": "0"}
    assert mirror.cluster == V2.cluster
    assert mirror.runtime_fraction.default_value.numerator == 2_500


@pytest.mark.parametrize(
    ("policy", "last"),
    [
        (MissingKey.BASELINE, "baseline"),
        (MissingKey.RANDOM, "flights/r1/canary/2"),
        (MissingKey.REFUSE, "baseline"),
    ],
)
def test_sticky_split_has_an_explicit_answer_to_a_missing_key(policy: MissingKey, last: str):
    sticky = Stickiness("x-user", "r1", policy)
    routes = routes_of(snapshot_of(mesh(canary(stickiness=sticky)))).virtual_hosts[0].routes
    keyed, otherwise = routes[-2:]
    assert keyed.match.headers[0].name == "x-user"
    assert keyed.route.weighted_clusters.use_hash_policy.value
    assert keyed.route.hash_policy[0].header.regex_rewrite.substitution == "r1:\\1"
    assert otherwise.name == last
    refuses = otherwise.metadata.filter_metadata[LUA].fields
    assert ("refuse" in refuses) == (policy is MissingKey.REFUSE)


def test_brake_is_in_the_runtime_layer():
    body = snapshot_of(mesh(canary(cause=Cause.BRAKE))).resources[xds.RUNTIME]["volary"].body
    assert f"brake.{V2.cluster}".encode() in body.value


def test_model_without_traffic_has_no_scope():
    snapshot = snapshot_of(mesh(Traffic(MODEL)))
    assert snapshot.names(xds.SCOPE) == {"-"}


def test_cluster_without_endpoints_is_inconsistent():
    snapshot = without(snapshot_of(mesh()), xds.ENDPOINTS, V2.cluster)
    assert not lints.consistent(snapshot)
    with pytest.raises(Internal, match="endpoints of cluster version/default/flights/2 is missing"):
        lints.check(snapshot, EMPTY)


def test_route_to_nowhere_and_scope_to_nowhere_are_inconsistent():
    snapshot = snapshot_of(mesh())
    missing = without(snapshot, xds.CLUSTER, V2.cluster)
    assert any("points at cluster" in text for text in lints.inconsistencies(missing))
    assert not lints.consistent(without(snapshot, xds.ROUTES, MODEL.scope))
    assert not lints.consistent(without(snapshot, xds.SCOPE, MODEL.scope))


def _panic(cluster):
    cluster.common_lb_config.healthy_panic_threshold.value = 50


def _keeps_removed(cluster):
    cluster.ignore_health_on_host_removal = False


def _nameless(cluster):
    cluster.health_checks[0].grpc_health_check.authority = ""


def _starves(cluster):
    cluster.circuit_breakers.thresholds[0].retry_budget.min_retry_concurrency.value = 3


def _aggregate(cluster):
    cluster.cluster_type.name = "envoy.clusters.aggregate"


def _with_retries(cluster, change):
    options = http_protocol_options_pb2.HttpProtocolOptions()
    packed = cluster.typed_extension_protocol_options[HTTP_OPTIONS]
    packed.Unpack(options)
    change(options.retry_policy)
    packed.CopyFrom(pack(options))


def _slow_retries(cluster):
    def change(policy):
        policy.retry_back_off.base_interval.nanos = 25_000_000

    _with_retries(cluster, change)


def _no_reset(cluster):
    def change(policy):
        policy.retry_on = "unavailable,connect-failure,refused-stream"

    _with_retries(cluster, change)


def _renamed(cluster):
    cluster.alt_stat_name = "x"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (_panic, "has a panic threshold"),
        (_keeps_removed, "keeps removed hosts"),
        (_nameless, "which is no host"),
        (_starves, "starves retries"),
        (_aggregate, "is an aggregate"),
        (_slow_retries, "retries too late"),
        (_no_reset, "does not retry reset"),
        (_renamed, "do not change with their cluster"),
    ],
)
def test_trap_in_a_cluster_is_found(change, finding: str):
    assert finding in findings(with_cluster(snapshot_of(mesh()), change))


def _own_retries(host):
    host.retry_policy.num_retries.value = 1


def _wrong_total(host):
    host.routes[-1].route.weighted_clusters.clusters[0].weight.value = 1_001


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (_own_retries, "has retries of its own"),
        (_wrong_total, "splits 10001, not 10000"),
    ],
)
def test_trap_in_a_route_is_found(change, finding: str):
    assert finding in findings(with_routes(snapshot_of(mesh()), change))


def test_attempts_that_are_not_logged_are_found():
    from envoy.config.listener.v3 import listener_pb2
    from envoy.extensions.filters.network.http_connection_manager.v3 import (
        http_connection_manager_pb2,
    )

    def edit(items):
        listener = listener_pb2.Listener.FromString(items[0].body.value)
        network = listener.filter_chains[0].filters[0]
        connections = http_connection_manager_pb2.HttpConnectionManager()
        network.typed_config.Unpack(connections)
        connections.http_filters[-1].ClearField("typed_config")
        network.typed_config.CopyFrom(pack(connections))
        return [resource("edge", listener)]

    snapshot = changed(snapshot_of(mesh()), xds.LISTENER, edit)
    assert "does not log attempts" in findings(snapshot)


def test_listener_is_never_touched_after_the_first_snapshot():
    before = snapshot_of(mesh())
    after = snapshot_of(replace(mesh(), edge=replace(edge(), jwks='{"keys": [1]}')))
    assert [*lints.touched_listeners(after, before)] == ["listener edge changes"]
    assert [*lints.touched_listeners(after, EMPTY)] == []
