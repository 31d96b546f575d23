"""The delta stream, against a small model of Envoy."""

from __future__ import annotations

import pytest
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Traffic, Weight
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.delta import DeltaStream, Rejection, Request, Response
from volary_gateway.xds.mesh import snapshot_of
from volary_gateway.xds.snapshot import Snapshot, TypeUrl

from tests.unit.gateway.xds.test_snapshot import READY, V1, V2, canary, mesh

STEP_BYTES = 500


class Proxy:
    """Subscribes and acknowledges as Envoy does."""

    def __init__(self) -> None:
        self.stream = DeltaStream()
        self.snapshot = xds.EMPTY
        self.held: dict[TypeUrl, dict[str, str]] = {kind: {} for kind in xds.ORDER}
        self.bytes = 0  # of the last response
        self.log: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for kind in (xds.CLUSTER, xds.LISTENER):
            self.ask(kind)

    def ask(self, kind: TypeUrl, *names: str) -> None:
        self.stream.receive(Request(type_url=kind, resource_names_subscribe=names))

    def answer(self, response: Response, error: str = "") -> Rejection | None:
        request = Request(type_url=response.type_url, response_nonce=response.nonce)
        if error:
            request.error_detail.message = error
        return self.stream.receive(request)

    def take(self, response: Response) -> None:
        kind, self.bytes = TypeUrl(response.type_url), response.ByteSize()
        names = tuple(sorted(r.name for r in response.resources))
        removed = tuple(response.removed_resources)
        self.log.append((kind.rpartition(".")[2], names, removed))
        fresh = [n for n in names if n not in self.held[kind]]
        self.held[kind].update({r.name: r.version for r in response.resources})
        for name in removed:
            self.held[kind].pop(name, None)
        self.answer(response)
        if kind == xds.CLUSTER and (eds := [n for n in fresh if not n.startswith("service/")]):
            self.ask(xds.ENDPOINTS, *eds)
        if kind == xds.LISTENER:
            self.ask(xds.SCOPE)
            self.ask(xds.RUNTIME, "volary")
            self.ask(xds.EXTENSION, "volary.revocations", "volary.limits")
        if kind == xds.SCOPE and fresh:
            self.ask(xds.ROUTES, *fresh)

    def settle(self, snapshot: Snapshot) -> None:
        while responses := [*self.stream.respond(snapshot)]:
            for response in responses:
                self.take(response)


def settled(state=None) -> tuple[Proxy, Snapshot]:
    proxy, snapshot = Proxy(), snapshot_of(state or mesh())
    proxy.settle(snapshot)
    proxy.log.clear()
    return proxy, snapshot


def test_new_envoy_gets_everything_it_asks_for():
    proxy, snapshot = settled()
    assert proxy.stream.holds(snapshot)
    for kind in xds.ORDER:
        assert proxy.held[kind] == {n: r.version for n, r in snapshot.resources[kind].items()}
    assert [*proxy.stream.respond(snapshot)] == []


def test_step_is_one_small_push():
    proxy, _ = settled()
    after = snapshot_of(mesh(canary(3, 5_000)))
    assert not proxy.stream.holds(after)
    proxy.settle(after)
    assert proxy.log == [("RouteConfiguration", ("default/flights",), ())]
    assert proxy.bytes <= STEP_BYTES
    assert proxy.stream.holds(after)


def test_routes_wait_for_the_cluster_and_its_endpoints():
    before = Traffic(V1.parent, 1, (Weight(1, 10_000),), production=1)
    proxy, _ = settled(mesh(before, ready={V1: READY[V1]}))
    proxy.settle(snapshot_of(mesh()))
    kinds = [kind for kind, *_ in proxy.log]
    assert kinds == ["Cluster", "ClusterLoadAssignment", "RouteConfiguration"]
    assert proxy.log[1][1] == (V2.cluster,)


def test_routes_wait_while_endpoints_are_not_asked_for():
    before = Traffic(V1.parent, 1, (Weight(1, 10_000),), production=1)
    proxy, _ = settled(mesh(before, ready={V1: READY[V1]}))
    snapshot = snapshot_of(mesh())
    [cluster] = proxy.stream.respond(snapshot)
    proxy.answer(cluster)
    assert [*proxy.stream.respond(snapshot)] == []


def test_cluster_goes_after_the_routes_that_point_at_it():
    proxy, _ = settled()
    after = Traffic(V1.parent, 3, (Weight(1, 10_000),), production=1)
    proxy.settle(snapshot_of(mesh(after, ready={V1: READY[V1]})))
    kinds = [(kind, removed) for kind, _, removed in proxy.log]
    assert kinds[0] == ("RouteConfiguration", ())
    assert ("Cluster", (V2.cluster,)) in kinds[1:]


def test_new_model_is_reached_last():
    proxy, _ = settled()
    fares = ModelName("default", "fares")
    ready = READY | {VersionName.of(fares, 1): ("127.0.0.1:1",)}
    traffic = Traffic(fares, 1, (Weight(1, 10_000),), production=1)
    after = snapshot_of(mesh(canary(), traffic, ready=ready))
    proxy.settle(after)
    assert [kind for kind, *_ in proxy.log][-1] == "RouteConfiguration"
    assert proxy.stream.holds(after)


def test_refused_push_is_told_and_not_repeated_and_the_last_good_stays():
    proxy, _ = settled()
    bad = snapshot_of(mesh(canary(3, 5_000)))
    [response] = proxy.stream.respond(bad)
    rejection = proxy.answer(response, error="no such thing")
    assert rejection == Rejection(xds.ROUTES, ("default/flights",), "no such thing")
    assert [*proxy.stream.respond(bad)] == []
    assert not proxy.stream.holds(bad)
    assert proxy.stream.refuses(bad)
    better = snapshot_of(mesh(canary(4, 5_000)))
    proxy.settle(better)
    assert proxy.stream.holds(better)
    assert not proxy.stream.refuses(better)


def test_reconnected_envoy_is_sent_only_what_changed():
    _, snapshot = settled()
    stream = DeltaStream()
    versions = {n: r.version for n, r in snapshot.resources[xds.CLUSTER].items()}
    stream.receive(Request(type_url=xds.CLUSTER, initial_resource_versions=versions))
    assert [*stream.respond(snapshot)] == []
    versions[V1.cluster] = "old"
    versions["gone"] = "1"
    stream = DeltaStream()
    stream.receive(Request(type_url=xds.CLUSTER, initial_resource_versions=versions))
    [response] = stream.respond(snapshot)
    assert [r.name for r in response.resources] == [V1.cluster]


def test_changed_cluster_brings_its_endpoints_again():
    proxy, snapshot = settled()
    cluster = snapshot.resources[xds.CLUSTER][V1.cluster]
    proxy.stream.receive(Request(type_url=xds.ENDPOINTS, resource_names_subscribe=[V1.cluster]))
    [response] = proxy.stream.respond(snapshot)
    assert [r.name for r in response.resources] == [V1.cluster]
    assert cluster.name == V1.cluster


def test_quick_snapshots_coalesce():
    proxy, _ = settled()
    [first] = proxy.stream.respond(snapshot_of(mesh(canary(3, 2_000))))
    for generation in range(4, 10):
        assert [*proxy.stream.respond(snapshot_of(mesh(canary(generation, 2_000))))] == []
    last = snapshot_of(mesh(canary(10, 2_000)))
    proxy.answer(first)
    proxy.settle(last)
    assert len(proxy.log) == 1
    assert proxy.stream.holds(last)


def test_answer_to_another_streams_push_changes_nothing():
    proxy, snapshot = settled()
    proxy.stream.receive(Request(type_url=xds.ROUTES, response_nonce="no-such"))
    assert proxy.stream.holds(snapshot)


@pytest.mark.parametrize("name", ["nowhere"])
def test_what_is_not_there_is_said_to_be_absent_once(name: str):
    proxy, snapshot = settled()
    proxy.ask(xds.ENDPOINTS, name)
    [response] = proxy.stream.respond(snapshot)
    assert list(response.removed_resources) == [name]
    proxy.answer(response)
    assert [*proxy.stream.respond(snapshot)] == []


def test_what_envoy_asks_for_while_it_is_answered_is_not_taken_from_it():
    proxy, snapshot = settled()
    held = {kind: dict(versions) for kind, versions in proxy.held.items()}
    again = DeltaStream()  # gateway was killed, and does not know of a version that was ready
    stale = held[xds.CLUSTER] | {"version/default/flights/9": "0"}
    again.receive(Request(type_url=xds.CLUSTER, initial_resource_versions=stale))
    responses = iter(again.respond(snapshot))
    first = next(responses)
    assert list(first.removed_resources) == ["version/default/flights/9"]
    again.receive(Request(type_url=xds.SCOPE, initial_resource_versions=held[xds.SCOPE]))
    assert [*responses, *again.respond(snapshot)] == []
