"""From the state of the mesh to the snapshot that Envoy gets."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from envoy.service.runtime.v3 import rtds_pb2

from volary_gateway.domain.limits import Limit
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Cause, Traffic
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.clusters import endpoints, fixed_cluster, replica_cluster, version_cluster
from volary_gateway.xds.edge import INFERENCE_CLUSTER, TELEMETRY_CLUSTER, Edge
from volary_gateway.xds.limits import NAME as LIMITS
from volary_gateway.xds.limits import limits
from volary_gateway.xds.listener import EDGE_LISTENER, edge_listener
from volary_gateway.xds.revocations import NAME as REVOCATIONS
from volary_gateway.xds.revocations import revocations
from volary_gateway.xds.routes import (
    aside,
    aside_routes,
    brake_key,
    default_routes,
    default_scope,
    model_scopes,
    service_cluster,
    split_routes,
)
from volary_gateway.xds.snapshot import ORDER, Resource, Snapshot, TypeUrl, resource

RUNTIME_LAYER = "volary"
LISTENER_PART, EDGE_PART = "listener", "edge"  # no scope of a model: those have a slash
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
    return SnapshotBuilder().build(mesh)


class SnapshotBuilder:
    """Build one snapshot after the other; what did not change is taken over.

    A step of one model among thousands makes one small resource, and the kinds that it does not
    touch stay the same objects. The result is that of `snapshot_of`, whatever came before.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._resources: dict[TypeUrl, Mapping[str, Resource]] = {
            kind: MappingProxyType({}) for kind in ORDER
        }
        self._snapshot = Snapshot.of({})
        self._ready: Mapping[VersionName, tuple[str, ...]] | None = None
        self._ready_of: dict[str, Ready] = {}

    def build(self, mesh: Mesh) -> Snapshot:
        """Return the snapshot of a mesh."""
        keys = self._keys(mesh)
        old = self._parts
        gone = {name: old[name] for name in old.keys() - keys.keys()}
        fresh = {
            name: _part(key)
            for name, key in keys.items()
            if (known := old.get(name)) is None or known.key != key
        }
        if gone or fresh:
            self._take_over(gone, fresh)
        return self._snapshot

    def _keys(self, mesh: Mesh) -> dict[str, tuple[Any, ...]]:
        """Return what each part is made from."""
        ready = self._grouped(mesh.ready)
        serving = {t.model.scope: t for t in mesh.traffic if t.weights}
        fallback = mesh.edge.fallback if mesh.fallbacks else ""
        falling = {model.scope for model in mesh.fallbacks}
        keys: dict[str, tuple[Any, ...]] = {
            scope: (_model_part, traffic, ready.get(scope, ()), fallback * (scope in falling))
            for scope, traffic in serving.items()
        }
        for scope in ready.keys() - serving.keys():
            keys[scope] = (_idle_part, scope, ready[scope], fallback * (scope in falling))
        braked = sorted((t for t in serving.values() if t.cause is Cause.BRAKE), key=_by_model)
        keys[LISTENER_PART] = (_listener_part, mesh.edge)
        keys[EDGE_PART] = (
            _edge_part,
            mesh.edge,
            mesh.replicas,
            mesh.revoked,
            tuple(sorted(mesh.limits)),
            tuple(braked),
        )
        return keys

    def _grouped(self, ready: Mapping[VersionName, tuple[str, ...]]) -> dict[str, Ready]:
        if ready is not self._ready:
            found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
            for version, at in ready.items():
                found.setdefault(version.parent.scope, []).append((version.version, at))
            self._ready_of = {scope: tuple(sorted(rows)) for scope, rows in found.items()}
            self._ready = ready
        return self._ready_of

    def _take_over(self, gone: Mapping[str, Part], fresh: Mapping[str, Part]) -> None:
        before = [*gone.values(), *(self._parts[n] for n in fresh if n in self._parts)]
        for kind in ORDER:
            old = {item.name: item for part in before for item in part.resources.get(kind, ())}
            new = {
                item.name: item for part in fresh.values() for item in part.resources.get(kind, ())
            }
            if old != new:
                kept = dict(self._resources[kind])
                for name in old:
                    del kept[name]
                self._resources[kind] = MappingProxyType(kept | new)
        for name in gone:
            del self._parts[name]
        self._parts |= fresh
        lines = sorted(f"{name} {part.version}" for name, part in self._parts.items())
        resources = MappingProxyType(dict(self._resources))
        self._snapshot = Snapshot(xds.digest("\n".join(lines).encode()), resources)


def _by_model(traffic: Traffic) -> str:
    return traffic.model.scope


def _part(key: tuple[Any, ...]) -> Part:
    make, *things = key
    resources: dict[TypeUrl, tuple[Resource, ...]] = make(*things)
    return Part(key, resources, Snapshot.of(resources).version)


def _model_part(
    traffic: Traffic, ready: Ready, fallback: str
) -> dict[TypeUrl, tuple[Resource, ...]]:
    """Return a model's clusters, endpoints, routes and scope."""
    model, at = traffic.model, dict(ready)
    versions = sorted({*at, *traffic.versions})
    routable = sorted({*(v for v, addresses in ready if addresses), *traffic.versions})
    return _versions_part({VersionName.of(model, v): at.get(v, ()) for v in versions}, fallback) | {
        xds.ROUTES: (
            resource(model.scope, split_routes(traffic)),
            resource(aside(model), aside_routes(traffic, routable)),
        ),
        xds.SCOPE: tuple(resource(scope.name, scope) for scope in model_scopes(model)),
    }


def _idle_part(scope: str, ready: Ready, fallback: str) -> dict[TypeUrl, tuple[Resource, ...]]:
    """Return the clusters of a model that is loaded and has no traffic."""
    model = ModelName(*scope.split("/"))
    return _versions_part({VersionName.of(model, v): at for v, at in ready}, fallback)


def _versions_part(
    ready: Mapping[VersionName, tuple[str, ...]], fallback: str
) -> dict[TypeUrl, tuple[Resource, ...]]:
    """Return clusters and endpoints; endpoints change with their cluster.

    A changed cluster warms until its endpoints are sent again: 15 s of nothing otherwise.
    """
    clusters = {v: resource(v.cluster, version_cluster(v.cluster)) for v in ready}
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
    braked: tuple[Traffic, ...],
) -> dict[TypeUrl, tuple[Resource, ...]]:
    """Return what belongs to no model."""
    fixed = [fixed_cluster(service_cluster(name), at) for name, at in edge.services.items()]
    if edge.otlp:
        fixed.append(fixed_cluster(TELEMETRY_CLUSTER, edge.otlp))
    anywhere = resource(INFERENCE_CLUSTER, replica_cluster(INFERENCE_CLUSTER))
    at = endpoints(INFERENCE_CLUSTER, replicas)
    default, scope = default_routes(edge.services), default_scope()
    return {
        xds.CLUSTER: (anywhere, *(resource(cluster.name, cluster) for cluster in fixed)),
        xds.ENDPOINTS: (resource(INFERENCE_CLUSTER, at, salt=anywhere.version),),
        xds.EXTENSION: (
            resource(REVOCATIONS, revocations(revoked)),
            resource(LIMITS, limits(limited)),
        ),
        xds.ROUTES: (resource(default.name, default),),
        xds.SCOPE: (resource(scope.name, scope),),
        xds.RUNTIME: (resource(RUNTIME_LAYER, _runtime(braked)),),
    }


def _runtime(braked: tuple[Traffic, ...]) -> rtds_pb2.Runtime:
    """Return the brake: weights that hold whatever the routes say."""
    runtime = rtds_pb2.Runtime(name=RUNTIME_LAYER)
    runtime.layer.update(
        {brake_key(VersionName.of(t.model, w.version)): w.weight for t in braked for w in t.weights}
    )
    return runtime
