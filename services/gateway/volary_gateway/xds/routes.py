"""Route configurations: two small ones a model, and one for what belongs to no model."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from google.protobuf.wrappers_pb2 import UInt32Value

from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import MissingKey, Segment, Stickiness, Traffic, Weight
from volary_gateway.xds.edge import INFERENCE_CLUSTER, REST, REST_CLUSTER
from volary_gateway.xds.packing import has_header, header_is, seconds, set_headers

Route = route_components_pb2.Route
RouteAction = route_components_pb2.RouteAction

DEFAULT_SCOPE = "-"
SCOPE_HEADER = "volary-scope"
ASIDE = "/aside"
BRAKE = "brake"  # runtime keys: this, a dot, and the cluster whose share it is
REST_IDLE_S = 60  # a body that stalls is given up
# the Lua filter reads this to tell a known model from an unknown one
NOT_FOUND = 404
LUA = "lua"  # short: it stands in every push
KNOWN = base_pb2.Metadata()
KNOWN.filter_metadata[LUA].update({"known": True})
REFUSED_KEY = base_pb2.Metadata()
REFUSED_KEY.filter_metadata[LUA].update({"known": True, "refuse": "key"})
REFUSED_VERSION = base_pb2.Metadata()
REFUSED_VERSION.filter_metadata[LUA].update({"known": True, "refuse": "version"})


def split_routes(traffic: Traffic) -> route_pb2.RouteConfiguration:
    """Return the routes of the calls that a model's split is for.

    A step pushes this and nothing else, under the same configuration name: so it holds only
    what a step changes. What a version is and how calls to it are tried again is its cluster's.
    """
    routes = [route for segment in traffic.segments for route in _segment(traffic, segment)]
    return _configuration(traffic.model.scope, [*routes, *_split(traffic)])


def aside_routes(
    model: ModelName, production: int, routable: Iterable[int]
) -> route_pb2.RouteConfiguration:
    """Return the routes of the calls that no split is for: pinned versions, and information."""
    routes = [*_pinned(model, routable), _information(VersionName.of(model, production))]
    return _configuration(aside(model), routes)


def aside(model: ModelName) -> str:
    """Return the scope key of the calls that a model's split is not for."""
    return model.scope + ASIDE


def _configuration(name: str, routes: Iterable[Route]) -> route_pb2.RouteConfiguration:
    host = route_components_pb2.VirtualHost(
        name="model", domains=["*"], routes=routes, include_request_attempt_count=True
    )
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])


def model_scopes(model: ModelName) -> list[scoped_route_pb2.ScopedRouteConfiguration]:
    """Return the scopes that lead a (project, model) to its two route configurations."""
    return [_scope(model.scope), _scope(aside(model))]


def default_scope() -> scoped_route_pb2.ScopedRouteConfiguration:
    """Return the scope of everything that belongs to no model."""
    return _scope(DEFAULT_SCOPE)


def default_routes(
    services: Iterable[str], *, has_rest: bool = False
) -> route_pb2.RouteConfiguration:
    """Return the routes of calls that belong to no model, by the service that answers them.

    The first filter has let through only the methods that the contract opens, and named the
    service of each; an operation's is named by the operation.
    """
    routes = [_to_service("inference", INFERENCE_CLUSTER)]
    routes += [_to_service(service, service_cluster(service)) for service in sorted(services)]
    if has_rest:
        routes.insert(0, _to_rest())
    host = route_components_pb2.VirtualHost(name="default", domains=["*"], routes=routes)
    return route_pb2.RouteConfiguration(name=DEFAULT_SCOPE, virtual_hosts=[host])


def service_cluster(service: str) -> str:
    """Return the name of the cluster of a service."""
    return f"service/{service}"


def _scope(key: str) -> scoped_route_pb2.ScopedRouteConfiguration:
    scope = scoped_route_pb2.ScopedRouteConfiguration
    return scope(
        name=key,
        route_configuration_name=key,
        key=scope.Key(fragments=[scope.Key.Fragment(string_key=key)]),
    )


def _to_rest() -> Route:
    """Send V2 over HTTP to its translators; their own gRPC calls have the deadlines."""
    action = RouteAction(
        cluster=REST_CLUSTER, timeout=seconds(0), idle_timeout=seconds(REST_IDLE_S)
    )
    match = route_components_pb2.RouteMatch(
        prefix=REST, headers=[header_is("volary-service", "rest")]
    )
    return Route(name=REST_CLUSTER, match=match, metadata=KNOWN, route=action)


def _to_service(service: str, cluster: str) -> Route:
    match = route_components_pb2.RouteMatch(
        prefix="/", headers=[header_is("volary-service", service)]
    )
    return Route(name=cluster, match=match, metadata=KNOWN, route=_to(cluster))


def _pinned(model: ModelName, versions: Iterable[int]) -> list[Route]:
    """Return a route for each version that a caller may name; none of it is evidence."""
    known = [
        Route(
            name="pinned",
            match=route_components_pb2.RouteMatch(
                prefix="/", headers=[header_is("volary-pinned", str(version))]
            ),
            metadata=KNOWN,
            request_headers_to_add=set_headers({"volary-version": str(version)}),
            route=_to(VersionName.of(model, version).cluster),
        )
        for version in versions
    ]
    return [*known, _unknown_version()]


def _unknown_version() -> Route:
    """Refuse a version that is not loaded; the direct response is what the script replaces."""
    match = route_components_pb2.RouteMatch(prefix="/", headers=[has_header("volary-pinned")])
    route = Route(name="unknown-version", match=match, metadata=REFUSED_VERSION)
    route.direct_response.status = NOT_FOUND
    return route


def _information(production: VersionName) -> Route:
    match = route_components_pb2.RouteMatch(prefix="/")
    return Route(name="information", match=match, metadata=KNOWN, route=_to(production.cluster))


@dataclass(frozen=True, slots=True)
class _Share:
    """A split, the calls that it is for, and the name that they are counted under."""

    name: str
    weights: tuple[Weight, ...]
    headers: tuple[route_components_pb2.HeaderMatcher, ...] = ()
    brake: str = ""

    def match(self, *more: route_components_pb2.HeaderMatcher) -> route_components_pb2.RouteMatch:
        return route_components_pb2.RouteMatch(prefix="/", headers=[*self.headers, *more])


def _segment(traffic: Traffic, segment: Segment) -> list[Route]:
    """Return the routes of the callers whose header has one of the segment's values."""
    name = str(traffic.route_of(segment))
    matcher = _one_of(segment.header, segment.values)
    return _routes_of(traffic, _Share(name, segment.weights, (matcher,)))


def _split(traffic: Traffic) -> list[Route]:
    """Return the routes of everybody who is in no segment: whom the split is for, and the rest."""
    audience = traffic.audience
    headers = (_one_of(audience.header, audience.values),) if audience else ()
    share = _Share(str(traffic.route), traffic.weights, headers, brake=BRAKE)
    routes = _routes_of(traffic, share)
    if audience:
        routes.append(_baseline(traffic, route_components_pb2.RouteMatch(prefix="/")))
    return routes


def _one_of(header: str, values: Iterable[str]) -> route_components_pb2.HeaderMatcher:
    """Match callers whose header is one of the values, as a whole."""
    matcher = route_components_pb2.HeaderMatcher(name=header)
    matcher.string_match.safe_regex.regex = "|".join(re.escape(value) for value in values)
    return matcher


def _routes_of(traffic: Traffic, share: _Share) -> list[Route]:
    """Return the routes of a split; with a sticky header, one for calls that lack it."""
    sticky = traffic.stickiness
    anywhere = share.match()
    if not sticky.header:
        return [_weighted(traffic, anywhere, share)]
    first = _weighted(traffic, share.match(has_header(sticky.header)), share, sticky)
    match sticky.missing_key:
        case MissingKey.RANDOM:
            return [first, _weighted(traffic, anywhere, share)]
        case MissingKey.BASELINE:
            return [first, _baseline(traffic, anywhere)]
        case MissingKey.REFUSE:
            refused = _baseline(traffic, anywhere)
            refused.metadata.CopyFrom(REFUSED_KEY)
            return [first, refused]


def _baseline(traffic: Traffic, match: route_components_pb2.RouteMatch) -> Route:
    """Send to production without a route header: never evidence."""
    cluster = VersionName.of(traffic.model, traffic.production).cluster
    return Route(
        name="baseline",
        match=match,
        metadata=KNOWN,
        request_headers_to_add=set_headers({"volary-version": str(traffic.production)}),
        route=_to(cluster),
    )


def _weighted(
    traffic: Traffic,
    match: route_components_pb2.RouteMatch,
    share: _Share,
    sticky: Stickiness | None = None,
) -> Route:
    name = share.name
    split = route_components_pb2.WeightedCluster(
        clusters=[_share(traffic.model, weight) for weight in share.weights],
        runtime_key_prefix=share.brake,
    )
    action = RouteAction(weighted_clusters=split, **_deadline())
    headers = {"volary-route": name}
    if sticky is not None:
        action.weighted_clusters.use_hash_policy.value = True
        action.hash_policy.append(_hash(sticky))
        headers["volary-user"] = f"%REQ({sticky.header})%"
    if traffic.shadow is not None:
        action.request_mirror_policies.append(_mirror(traffic))
    return Route(
        name=name,
        match=match,
        metadata=KNOWN,
        request_headers_to_add=set_headers(headers),
        route=action,
    )


def brake_key(version: VersionName) -> str:
    """Return the runtime key by which the brake overrides a version's weight."""
    return f"{BRAKE}.{version.cluster}"


def _share(model: ModelName, weight: Weight) -> route_components_pb2.WeightedCluster.ClusterWeight:
    return route_components_pb2.WeightedCluster.ClusterWeight(
        name=VersionName.of(model, weight.version).cluster,
        weight=UInt32Value(value=weight.weight),
        request_headers_to_add=set_headers({"volary-version": str(weight.version)}),
    )


def _hash(sticky: Stickiness) -> RouteAction.HashPolicy:
    """Hash the key behind a salt, so that each experiment draws its first callers anew."""
    header = RouteAction.HashPolicy.Header(header_name=sticky.header)
    header.regex_rewrite.pattern.regex = "^(.*)$"
    header.regex_rewrite.substitution = f"{sticky.salt}:\\1"
    return RouteAction.HashPolicy(header=header)


def _mirror(traffic: Traffic) -> RouteAction.RequestMirrorPolicy:
    """Copy a share of the calls under the shadow's own version, not under the primary's.

    A copy is made once: Envoy does not number its attempts, so one made again would be counted as
    a call of its own, and nobody waits for its answer.
    """
    assert traffic.shadow is not None
    version = VersionName.of(traffic.model, traffic.shadow.version)
    headers = {
        "volary-version": str(version.version),
        "volary-shadow": "true",
        "x-envoy-max-retries": "0",
    }
    policy = RouteAction.RequestMirrorPolicy(
        cluster=version.cluster,
        disable_shadow_host_suffix_append=True,
        request_headers_mutations=[
            mutation_rules_pb2.HeaderMutation(append=option) for option in set_headers(headers)
        ],
    )
    share = policy.runtime_fraction
    share.runtime_key = f"volary.shadow.{traffic.model.project}.{traffic.model.model}"
    share.default_value.numerator = traffic.shadow.fraction
    share.default_value.denominator = share.default_value.TEN_THOUSAND
    return policy


def _to(cluster: str) -> RouteAction:
    return RouteAction(cluster=cluster, **_deadline())


def _deadline() -> dict[str, object]:
    """Hold a call to its `grpc-timeout`, which the first filter sets where it is missing."""
    limit = RouteAction.MaxStreamDuration(grpc_timeout_header_max=seconds(0))
    return {"timeout": seconds(0), "max_stream_duration": limit}
