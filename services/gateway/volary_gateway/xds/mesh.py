"""From the state of the mesh to the snapshot that Envoy gets."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from envoy.service.runtime.v3 import rtds_pb2

from volary_gateway.domain.limits import Limit
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Cause, Traffic
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.clusters import (
    endpoints,
    fixed_cluster,
    replica_cluster,
    rest_cluster,
)
from volary_gateway.xds.edge import INFERENCE_CLUSTER, REST_CLUSTER, TELEMETRY_CLUSTER, Edge
from volary_gateway.xds.limits import NAME as LIMITS
from volary_gateway.xds.limits import limits
from volary_gateway.xds.listener import EDGE_LISTENER, edge_listener
from volary_gateway.xds.revocations import NAME as REVOCATIONS
from volary_gateway.xds.revocations import revocations
from volary_gateway.xds.routes import (
    ASIDE,
    aside,
    aside_routes,
    brake_key,
    default_routes,
    default_scope,
    model_scopes,
    service_cluster,
    split_routes,
)
from volary_gateway.xds.snapshot import Resource, Snapshot, TypeUrl, resource

RUNTIME_LAYER = "volary"
# no scope of a model: those have a slash
LISTENER_PART, EDGE_PART, BRAKE_PART = "listener", "edge", "brake"
VERSIONS = 16**xds.VERSION_DIGITS
Ready = tuple[tuple[int, tuple[str, ...]], ...]  # of one model: addresses by version


@dataclass(frozen=True, slots=True)
class Mesh:
    """What serves and where: traffic by model, addresses of the replicas by version."""

    edge: Edge
    traffic: tuple[Traffic, ...] = ()
    ready: Mapping[VersionName, tuple[str, ...]] = field(default_factory=dict)
    replicas: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    fallbacks: frozenset[ModelName] = frozenset()  # models that declare one


@dataclass(frozen=True, slots=True)
class Part:
    """Resources that depend on the same few things: `key` is how, then those things."""

    key: tuple[Any, ...]
    resources: Mapping[TypeUrl, tuple[Resource, ...]]
    version: str


def snapshot_of(mesh: Mesh) -> Snapshot:
    """Build the snapshot of a mesh; a pure function, so a restart gives the same version."""
    return Built().of(mesh).snapshot


@dataclass(frozen=True, slots=True)
class Built:
    """A snapshot and what it was built from, so that the next one costs what changes.

    A step of one model among thousands makes one small resource, and the kinds that it does not
    touch stay the same objects. The result is that of `snapshot_of`, whatever came before.
    """

    snapshot: Snapshot = xds.EMPTY
    mesh: Mesh | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    total: int = 0  # of the versions of all parts: their sum, so that order plays no part
    ready_of: Mapping[str, Ready] = field(default_factory=dict)
    braked: Mapping[str, Traffic] = field(default_factory=dict)

    def of(self, mesh: Mesh) -> Built:
        """Return the snapshot of a mesh, compared part by part with this one."""
        ready = self.ready_of
        if self.mesh is None or mesh.ready is not self.mesh.ready:
            ready = _grouped(mesh.ready)
        serving = {t.model.scope: t for t in mesh.traffic if t.weights}
        braked = {scope: t for scope, t in serving.items() if t.cause is Cause.BRAKE}
        keys = _shared_keys(mesh) | {BRAKE_PART: _brake_key(braked)}
        for traffic in serving.values():
            keys |= _model_keys(mesh, traffic, ready)
        for scope in ready.keys() - serving.keys():
            idle = Traffic(ModelName(*scope.split("/")))
            keys[scope + ASIDE] = _aside_key(mesh, idle, ready)
        gone = self.parts.keys() - keys.keys()
        return _next(replace(self, mesh=mesh, ready_of=ready, braked=braked), gone, keys)

    def with_traffic(self, traffic: Traffic) -> Built:
        """Return the snapshot of the same mesh with the new traffic of one model that serves.

        Built from the traffic alone: what else the mesh is made of is taken over.
        """
        if self.mesh is None:
            raise ValueError("a mesh comes before its steps")
        scope = traffic.model.scope
        keys = _model_keys(self.mesh, traffic, self.ready_of)
        braked = self.braked
        if traffic.cause is Cause.BRAKE or scope in braked:
            braked = {key: t for key, t in braked.items() if key != scope}
            if traffic.cause is Cause.BRAKE:
                braked[scope] = traffic
            keys[BRAKE_PART] = _brake_key(braked)
        return _next(replace(self, braked=braked), (), keys)


def _next(before: Built, gone: Iterable[str], keys: Mapping[str, tuple[Any, ...]]) -> Built:
    fresh = {
        name: _part(key)
        for name, key in keys.items()
        if (known := before.parts.get(name)) is None or known.key != key
    }
    if not gone and not fresh:
        return before
    old = {name: before.parts[name] for name in (*gone, *fresh) if name in before.parts}
    tables = {
        kind: table.replaced(_names(old, kind), _items(fresh, kind))
        for kind, table in before.snapshot.resources.items()
    }
    total = (before.total + _sum(fresh) - _sum(old)) % VERSIONS
    parts = dict(before.parts)
    for name in gone:
        del parts[name]
    parts |= fresh
    snapshot = Snapshot(f"{total:0{xds.VERSION_DIGITS}x}", MappingProxyType(tables))
    return replace(before, snapshot=snapshot, parts=parts, total=total)


def _names(parts: Mapping[str, Part], kind: TypeUrl) -> Iterator[str]:
    return (item.name for item in _items(parts, kind))


def _items(parts: Mapping[str, Part], kind: TypeUrl) -> Iterator[Resource]:
    return (item for part in parts.values() for item in part.resources.get(kind, ()))


def _sum(parts: Mapping[str, Part]) -> int:
    return sum(int(xds.digest(f"{n} {part.version}".encode()), 16) for n, part in parts.items())


def _grouped(ready: Mapping[VersionName, tuple[str, ...]]) -> dict[str, Ready]:
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for version, at in ready.items():
        found.setdefault(version.parent.scope, []).append((version.version, at))
    return {scope: tuple(sorted(rows)) for scope, rows in found.items()}


def _model_keys(
    mesh: Mesh, traffic: Traffic, ready: Mapping[str, Ready]
) -> dict[str, tuple[Any, ...]]:
    """Return the two parts of a model that serves: what a step changes, and the rest."""
    scope = traffic.model.scope
    return {scope: (_split_part, traffic), scope + ASIDE: _aside_key(mesh, traffic, ready)}


def _aside_key(mesh: Mesh, traffic: Traffic, ready: Mapping[str, Ready]) -> tuple[Any, ...]:
    scope, named = traffic.model.scope, tuple(sorted(traffic.versions))
    is_serving = bool(traffic.weights)
    production = traffic.production if is_serving else None
    at = ready.get(scope, ())
    return (_aside_part, traffic.model, named, production, at, _fallback(mesh, scope))


def _fallback(mesh: Mesh, scope: str) -> str:
    if not mesh.fallbacks or ModelName(*scope.split("/")) not in mesh.fallbacks:
        return ""
    return mesh.edge.fallback


def _shared_keys(mesh: Mesh) -> dict[str, tuple[Any, ...]]:
    limited = tuple(sorted(mesh.limits))
    return {
        LISTENER_PART: (_listener_part, mesh.edge),
        EDGE_PART: (_edge_part, mesh.edge, mesh.replicas, mesh.revoked, limited),
    }


def _brake_key(braked: Mapping[str, Traffic]) -> tuple[Any, ...]:
    return (_brake_part, tuple(braked[scope] for scope in sorted(braked)))


def _part(key: tuple[Any, ...]) -> Part:
    make, *things = key
    resources: dict[TypeUrl, tuple[Resource, ...]] = make(*things)
    return Part(key, resources, Snapshot.of(resources).version)


def _split_part(traffic: Traffic) -> dict[TypeUrl, tuple[Resource, ...]]:
    return {xds.ROUTES: (resource(traffic.model.scope, split_routes(traffic)),)}


def _aside_part(
    model: ModelName, named: tuple[int, ...], production: int | None, ready: Ready, fallback: str
) -> dict[TypeUrl, tuple[Resource, ...]]:
    """Return a model's clusters and endpoints; if it serves, its scopes and the routes aside."""
    at = dict(ready)
    versions = {VersionName.of(model, v): at.get(v, ()) for v in sorted({*at, *named})}
    found = _versions(versions, fallback)
    if production is None:
        return found
    routable = sorted({*(v for v, addresses in ready if addresses), *named})
    return found | {
        xds.ROUTES: (resource(aside(model), aside_routes(model, production, routable)),),
        xds.SCOPE: tuple(resource(scope.name, scope) for scope in model_scopes(model)),
    }


def _versions(
    ready: Mapping[VersionName, tuple[str, ...]], fallback: str
) -> dict[TypeUrl, tuple[Resource, ...]]:
    """Return clusters and endpoints; endpoints change with their cluster.

    A changed cluster warms until its endpoints are sent again: 15 s of nothing otherwise.
    """
    clusters = {v: resource(v.cluster, replica_cluster(v.cluster)) for v in ready}
    return {
        xds.CLUSTER: tuple(clusters.values()),
        xds.ENDPOINTS: tuple(
            resource(v.cluster, endpoints(v.cluster, at, fallback), salt=clusters[v].version)
            for v, at in ready.items()
        ),
    }


def _listener_part(edge: Edge) -> dict[TypeUrl, tuple[Resource, ...]]:
    return {xds.LISTENER: (resource(EDGE_LISTENER, edge_listener(edge)),)}


def _edge_part(
    edge: Edge,
    replicas: tuple[str, ...],
    revoked: tuple[str, ...],
    limited: tuple[Limit, ...],
) -> dict[TypeUrl, tuple[Resource, ...]]:
    """Return what belongs to no model."""
    fixed = [fixed_cluster(service_cluster(name), at) for name, at in edge.services.items()]
    if edge.otlp:
        fixed.append(fixed_cluster(TELEMETRY_CLUSTER, edge.otlp))
    if edge.rest:
        fixed.append(rest_cluster(REST_CLUSTER, edge.rest))
    anywhere = resource(INFERENCE_CLUSTER, replica_cluster(INFERENCE_CLUSTER))
    at = endpoints(INFERENCE_CLUSTER, replicas)
    default, scope = default_routes(edge.services, has_rest=bool(edge.rest)), default_scope()
    return {
        xds.CLUSTER: (anywhere, *(resource(cluster.name, cluster) for cluster in fixed)),
        xds.ENDPOINTS: (resource(INFERENCE_CLUSTER, at, salt=anywhere.version),),
        xds.EXTENSION: (
            resource(REVOCATIONS, revocations(revoked)),
            resource(LIMITS, limits(limited)),
        ),
        xds.ROUTES: (resource(default.name, default),),
        xds.SCOPE: (resource(scope.name, scope),),
    }


def _brake_part(braked: tuple[Traffic, ...]) -> dict[TypeUrl, tuple[Resource, ...]]:
    return {xds.RUNTIME: (resource(RUNTIME_LAYER, _runtime(braked)),)}


def _runtime(braked: tuple[Traffic, ...]) -> rtds_pb2.Runtime:
    """Return the brake: weights that hold whatever the routes say."""
    runtime = rtds_pb2.Runtime(name=RUNTIME_LAYER)
    runtime.layer.update(
        {brake_key(VersionName.of(t.model, w.version)): w.weight for t in braked for w in t.weights}
    )
    return runtime
