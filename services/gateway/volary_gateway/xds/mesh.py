"""From the state of the mesh to the snapshot that Envoy gets."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envoy.service.runtime.v3 import rtds_pb2

from volary_gateway.domain.limits import Limit
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Cause, Traffic
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.clusters import endpoints, fixed_cluster, replica_cluster
from volary_gateway.xds.edge import INFERENCE_CLUSTER, TELEMETRY_CLUSTER, Edge
from volary_gateway.xds.limits import NAME as LIMITS
from volary_gateway.xds.limits import limits
from volary_gateway.xds.listener import EDGE_LISTENER, edge_listener
from volary_gateway.xds.revocations import NAME as REVOCATIONS
from volary_gateway.xds.revocations import revocations
from volary_gateway.xds.routes import (
    ModelRoutes,
    default_routes,
    default_scope,
    model_routes,
    model_scope,
    runtime_prefix,
    service_cluster,
)
from volary_gateway.xds.snapshot import Resource, Snapshot, resource

RUNTIME_LAYER = "volary"


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


def snapshot_of(mesh: Mesh) -> Snapshot:
    """Build the snapshot of a mesh; a pure function, so a restart gives the same version."""
    clusters = _clusters(mesh)
    return Snapshot.of(
        {
            xds.CLUSTER: clusters.values(),
            xds.ENDPOINTS: _endpoints(mesh, clusters),
            xds.EXTENSION: [
                resource(REVOCATIONS, revocations(mesh.revoked)),
                resource(LIMITS, limits(mesh.limits)),
            ],
            xds.LISTENER: [resource(EDGE_LISTENER, edge_listener(mesh.edge))],
            xds.ROUTES: _routes(mesh),
            xds.SCOPE: _scopes(mesh),
            xds.RUNTIME: [resource(RUNTIME_LAYER, _runtime(mesh))],
        }
    )


def _serving(mesh: Mesh) -> list[Traffic]:
    """Return the traffic that has somewhere to go."""
    return sorted((t for t in mesh.traffic if t.weights), key=lambda t: t.model)


def _versions(mesh: Mesh) -> list[VersionName]:
    """Return the versions that have a cluster: ready somewhere, or pointed at by traffic."""
    pointed = {VersionName.of(t.model, v) for t in _serving(mesh) for v in t.versions}
    return sorted(pointed | mesh.ready.keys())


def _clusters(mesh: Mesh) -> dict[str, Resource]:
    built = [replica_cluster(version.cluster) for version in _versions(mesh)]
    built.append(replica_cluster(INFERENCE_CLUSTER))
    built += [
        fixed_cluster(service_cluster(service), at) for service, at in mesh.edge.services.items()
    ]
    if mesh.edge.otlp:
        built.append(fixed_cluster(TELEMETRY_CLUSTER, mesh.edge.otlp))
    return {cluster.name: resource(cluster.name, cluster) for cluster in built}


def _endpoints(mesh: Mesh, clusters: Mapping[str, Resource]) -> list[Resource]:
    """Return the endpoints; each changes with its cluster.

    A changed cluster warms until its endpoints are sent again: 15 s of nothing otherwise.
    """
    at = {version.cluster: mesh.ready.get(version, ()) for version in _versions(mesh)}
    at[INFERENCE_CLUSTER] = mesh.replicas
    fallback = {v.cluster: mesh.edge.fallback for v in _versions(mesh) if _falls_back(mesh, v)}
    return [
        resource(
            name,
            endpoints(name, addresses, fallback.get(name, "")),
            salt=clusters[name].version,
        )
        for name, addresses in at.items()
    ]


def _falls_back(mesh: Mesh, version: VersionName) -> bool:
    return bool(mesh.edge.fallback) and version.parent in mesh.fallbacks


def _routes(mesh: Mesh) -> list[Resource]:
    default = default_routes(mesh.edge.services)
    return [
        resource(default.name, default),
        *(
            resource(traffic.model.scope, model_routes(_model(mesh, traffic)))
            for traffic in _serving(mesh)
        ),
    ]


def _model(mesh: Mesh, traffic: Traffic) -> ModelRoutes:
    falls_back = bool(mesh.edge.fallback) and traffic.model in mesh.fallbacks
    return ModelRoutes(traffic, _routable(mesh, traffic), falls_back=falls_back)


def _routable(mesh: Mesh, traffic: Traffic) -> tuple[int, ...]:
    of_model = (v.version for v, at in mesh.ready.items() if at and v.parent == traffic.model)
    return tuple(sorted({*of_model, *traffic.versions}))


def _scopes(mesh: Mesh) -> list[Resource]:
    scopes = [default_scope(), *(model_scope(traffic.model) for traffic in _serving(mesh))]
    return [resource(scope.name, scope) for scope in scopes]


def _runtime(mesh: Mesh) -> rtds_pb2.Runtime:
    """Return the brake: weights that hold whatever the routes say."""
    runtime = rtds_pb2.Runtime(name=RUNTIME_LAYER)
    braked = [t for t in _serving(mesh) if t.cause is Cause.BRAKE]
    runtime.layer.update(
        {
            f"{runtime_prefix(t.model)}.{VersionName.of(t.model, w.version).cluster}": w.weight
            for t in braked
            for w in t.weights
        }
    )
    return runtime
