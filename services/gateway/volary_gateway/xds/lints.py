"""What must hold of a snapshot before it is served: references, then the traps of Envoy."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf.message import Message
from volary_kit.errors import Internal

from volary_gateway.domain.traffic import TOTAL
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.clusters import HTTP_OPTIONS, MIN_RETRY_CONCURRENCY
from volary_gateway.xds.logs import REQUEST_HEADERS
from volary_gateway.xds.retries import RETRY_BASE_S
from volary_gateway.xds.snapshot import Snapshot, Table, TypeUrl

Cluster = cluster_pb2.Cluster
M = TypeVar("M", bound=Message)
Lint = Callable[[Snapshot], Iterator[str]]


def check(snapshot: Snapshot, before: Snapshot) -> None:
    """Raise Internal with every finding unless a snapshot may follow the one before.

    What is as it was in the one before was checked then.
    """
    changed = changes(snapshot, before)
    findings = [
        *(inconsistencies(snapshot) if changed is snapshot else loose_ends(changed, snapshot)),
        *lint(changed),
        *touched_listeners(snapshot, before),
    ]
    if findings:
        raise Internal("SNAPSHOT_UNSOUND", "; ".join(findings))


def consistent(snapshot: Snapshot) -> bool:
    """Say whether every name that a snapshot mentions is in it."""
    return next(inconsistencies(snapshot), None) is None


def inconsistencies(snapshot: Snapshot) -> Iterator[str]:
    """Yield what a snapshot mentions and does not have, or has and never mentions."""
    clusters = snapshot.names(xds.CLUSTER)
    wanted = {c.name for c in _clusters(snapshot) if c.type == Cluster.EDS}
    yield from _differences("endpoints of cluster", wanted, snapshot.names(xds.ENDPOINTS))
    scopes = [*_read(snapshot, xds.SCOPE, scoped_route_pb2.ScopedRouteConfiguration)]
    named = {scope.route_configuration_name for scope in scopes}
    yield from _differences("route configuration", named, snapshot.names(xds.ROUTES))
    keys = [scope.key.fragments[0].string_key for scope in scopes]
    if len(set(keys)) != len(keys):
        yield "two scopes have one key"
    for route in _routes(snapshot):
        for target in _targets(route):
            if target not in clusters:
                yield f"route {route.name} points at cluster {target}, which is not there"


def changes(snapshot: Snapshot, before: Snapshot) -> Snapshot:
    """Return the resources that are new or other than before, endpoints with their cluster.

    Where something is gone it is the whole snapshot: anything may have pointed there.
    """
    tables = snapshot.resources
    moved = {kind: table.since(before.resources[kind]) for kind, table in tables.items()}
    if any(name not in tables[kind] for kind, names in moved.items() for name in names):
        return snapshot
    pairs = moved[xds.CLUSTER] | moved[xds.ENDPOINTS]
    moved |= {xds.CLUSTER: pairs, xds.ENDPOINTS: pairs}
    return Snapshot(
        snapshot.version,
        {
            kind: Table(table[name] for name in moved[kind] if name in table)
            for kind, table in tables.items()
        },
    )


def loose_ends(changed: Snapshot, whole: Snapshot) -> Iterator[str]:
    """Yield what the changed resources mention and the whole snapshot does not have."""
    wanted = {c.name for c in _clusters(changed) if c.type == Cluster.EDS}
    yield from _differences("endpoints of cluster", wanted, changed.names(xds.ENDPOINTS))
    scopes = [*_read(changed, xds.SCOPE, scoped_route_pb2.ScopedRouteConfiguration)]
    named = {scope.route_configuration_name for scope in scopes}
    there, scoped = whole.resources[xds.ROUTES], whole.resources[xds.SCOPE]
    for name in sorted(each for each in named if each not in there):
        yield f"route configuration {name} is missing"
    for name in sorted(each for each in changed.resources[xds.ROUTES] if each not in scoped):
        yield f"route configuration {name} is never used"
    clusters = whole.resources[xds.CLUSTER]
    for route in _routes(changed):
        for target in _targets(route):
            if target not in clusters:
                yield f"route {route.name} points at cluster {target}, which is not there"


def lint(snapshot: Snapshot) -> Iterator[str]:
    """Yield each trap that a snapshot would walk into."""
    for rule in LINTS:
        yield from rule(snapshot)


def panic_is_off(snapshot: Snapshot) -> Iterator[str]:
    """Below its panic threshold Envoy sends to hosts that it knows to be bad."""
    for cluster in _clusters(snapshot):
        settings = cluster.common_lb_config
        if (
            not settings.HasField("healthy_panic_threshold")
            or settings.healthy_panic_threshold.value
        ):
            yield f"cluster {cluster.name} has a panic threshold"


def removal_ignores_health(snapshot: Snapshot) -> Iterator[str]:
    """A removed host that is still healthy is kept and loses calls."""
    for cluster in _clusters(snapshot):
        if cluster.health_checks and not cluster.ignore_health_on_host_removal:
            yield f"cluster {cluster.name} keeps removed hosts while they look healthy"


def checks_name_a_host(snapshot: Snapshot) -> Iterator[str]:
    """Without one Envoy sends the cluster's name, and a strict server resets the check."""
    for cluster in _clusters(snapshot):
        for check in cluster.health_checks:
            authority = check.grpc_health_check.authority
            if not authority or "/" in authority:
                yield f"cluster {cluster.name} is checked under {authority!r}, which is no host"


def retries_do_not_starve(snapshot: Snapshot) -> Iterator[str]:
    """After a crash every call in flight wants its retry at once."""
    for cluster in _replica_clusters(snapshot):
        limits = cluster.circuit_breakers.thresholds
        if not limits or any(
            limit.retry_budget.min_retry_concurrency.value < MIN_RETRY_CONCURRENCY
            for limit in limits
        ):
            yield f"cluster {cluster.name} starves retries"
    for cluster, policy in _retries(snapshot):
        back_off = policy.retry_back_off.base_interval
        if back_off.ToTimedelta().total_seconds() > RETRY_BASE_S:
            yield f"cluster {cluster.name} retries too late"


def refusals_are_retried(snapshot: Snapshot) -> Iterator[str]:
    """A replica that fails before its first header is retried: by status, reset and connection."""
    for cluster, policy in _retries(snapshot):
        conditions = set(policy.retry_on.split(","))
        missing = {"connect-failure", "refused-stream", "reset", "unavailable"} - conditions
        if missing:
            yield f"cluster {cluster.name} does not retry {', '.join(sorted(missing))}"
    for host in _hosts(snapshot):
        if host.HasField("retry_policy") or any(
            r.route.HasField("retry_policy") for r in host.routes
        ):
            yield f"host {host.name} has retries of its own, which hide its cluster's"


def aggregates_are_not_used(snapshot: Snapshot) -> Iterator[str]:
    """An aggregate cluster does not fall back unless the call is retried."""
    for cluster in _clusters(snapshot):
        if cluster.cluster_type.name == "envoy.clusters.aggregate":
            yield f"cluster {cluster.name} is an aggregate"


def endpoints_follow_clusters(snapshot: Snapshot) -> Iterator[str]:
    """A changed cluster waits 15 s unless its endpoints are sent again with it."""
    for name, item in snapshot.resources[xds.ENDPOINTS].items():
        cluster = snapshot.resources[xds.CLUSTER].get(name)
        if cluster and item.version != xds.version_of(item.body, salt=cluster.version):
            yield f"endpoints of {name} do not change with their cluster"


def touched_listeners(snapshot: Snapshot, before: Snapshot) -> Iterator[str]:
    """A changed listener drains its connections: never in a rollout."""
    now, old = snapshot.resources[xds.LISTENER], before.resources[xds.LISTENER]
    for name in sorted(now.since(old) if old else ()):
        if name not in now or name not in old or now[name].version != old[name].version:
            yield f"listener {name} changes"


def attempts_are_logged(snapshot: Snapshot) -> Iterator[str]:
    """A fallback hides a version's errors from the caller: each attempt is judged."""
    for listener in _read(snapshot, xds.LISTENER, listener_pb2.Listener):
        for router in _routers(listener):
            if not any(_logs_the_route(entry) for entry in router.upstream_log):
                yield f"listener {listener.name} does not log attempts with their route"


def splits_add_up(snapshot: Snapshot) -> Iterator[str]:
    """The total is constant: a caller that stays at 5 % stays at 10 %."""
    for route in _routes(snapshot):
        shares = route.route.weighted_clusters.clusters
        total = sum(share.weight.value for share in shares)
        if shares and total != TOTAL:
            yield f"route {route.name} splits {total}, not {TOTAL}"


LINTS: tuple[Lint, ...] = (
    panic_is_off,
    removal_ignores_health,
    checks_name_a_host,
    retries_do_not_starve,
    refusals_are_retried,
    aggregates_are_not_used,
    endpoints_follow_clusters,
    attempts_are_logged,
    splits_add_up,
)


def _read(snapshot: Snapshot, kind: TypeUrl, of: type[M]) -> Iterator[M]:
    for item in snapshot.resources[kind].values():
        yield of.FromString(item.body.value)


def _clusters(snapshot: Snapshot) -> Iterator[Cluster]:
    return _read(snapshot, xds.CLUSTER, Cluster)


def _replica_clusters(snapshot: Snapshot) -> Iterator[Cluster]:
    return (cluster for cluster in _clusters(snapshot) if cluster.type == Cluster.EDS)


def _hosts(snapshot: Snapshot) -> Iterator[route_components_pb2.VirtualHost]:
    for routes in _read(snapshot, xds.ROUTES, route_pb2.RouteConfiguration):
        yield from routes.virtual_hosts


def _retries(snapshot: Snapshot) -> Iterator[tuple[Cluster, route_components_pb2.RetryPolicy]]:
    for cluster in _replica_clusters(snapshot):
        options = http_protocol_options_pb2.HttpProtocolOptions()
        cluster.typed_extension_protocol_options[HTTP_OPTIONS].Unpack(options)
        yield cluster, options.retry_policy


def _routes(snapshot: Snapshot) -> Iterator[route_components_pb2.Route]:
    for host in _hosts(snapshot):
        yield from host.routes


def _targets(route: route_components_pb2.Route) -> Iterator[str]:
    action = route.route
    if action.cluster:
        yield action.cluster
    yield from (share.name for share in action.weighted_clusters.clusters)
    yield from (mirror.cluster for mirror in action.request_mirror_policies)


def _routers(listener: listener_pb2.Listener) -> Iterator[router_pb2.Router]:
    for chain in listener.filter_chains:
        for network in chain.filters:
            connections = http_connection_manager_pb2.HttpConnectionManager()
            network.typed_config.Unpack(connections)
            router = router_pb2.Router()
            connections.http_filters[-1].typed_config.Unpack(router)
            yield router


def _logs_the_route(entry: accesslog_pb2.AccessLog) -> bool:
    config = als_pb2.HttpGrpcAccessLogConfig()
    return entry.typed_config.Unpack(config) and set(REQUEST_HEADERS) <= set(
        config.additional_request_headers_to_log
    )


def _differences(what: str, wanted: Iterable[str], there: Iterable[str]) -> Iterator[str]:
    wanted, there = set(wanted), set(there)
    yield from (f"{what} {name} is missing" for name in sorted(wanted - there))
    yield from (f"{what} {name} is never used" for name in sorted(there - wanted))
