"""The one listener; nothing in here depends on traffic, so a rollout never touches it."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import address_pb2, base_pb2, protocol_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.config.trace.v3 import http_tracer_pb2, opentelemetry_pb2
from envoy.extensions.filters.http.grpc_field_extraction.v3 import config_pb2 as extraction_pb2
from envoy.extensions.filters.http.grpc_json_transcoder.v3 import transcoder_pb2
from envoy.extensions.filters.http.grpc_web.v3 import grpc_web_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2 as replies_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value
from google.rpc import error_details_pb2

from volary_gateway.xds import limits, revocations
from volary_gateway.xds.edge import REST_OPEN, TELEMETRY_CLUSTER, Edge, Method, RouteKind
from volary_gateway.xds.logs import attempt_log, refusal_log
from volary_gateway.xds.packing import address, ads, grpc_cluster, pack, seconds
from volary_gateway.xds.rest import besides_rest, local_replies
from volary_gateway.xds.routes import LUA, SCOPE_HEADER
from volary_gateway.xds.scripts import admission, routing, version_field

Hcm = http_connection_manager_pb2.HttpConnectionManager
HttpFilter = http_connection_manager_pb2.HttpFilter
EDGE_LISTENER = "edge"
MAX_MESSAGE_BYTES = 68 << 20  # 64 MiB of message and its framing
MAX_HEADERS_KIB = 60
JWT_CACHE = 4_096
ISSUER = "volary"
LOAD_REPORT = "endpoint-load-metrics"


def edge_listener(edge: Edge) -> listener_pb2.Listener:
    """Return the one address of clients."""
    network = listener_components_pb2.Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=pack(_connections(edge))
    )
    return listener_pb2.Listener(
        name=EDGE_LISTENER,
        address=address_pb2.Address(**address(edge.listen)),
        filter_chains=[listener_components_pb2.FilterChain(filters=[network])],
        per_connection_buffer_limit_bytes=UInt32Value(value=MAX_MESSAGE_BYTES),
    )


def _connections(edge: Edge) -> Hcm:
    connections = Hcm(
        stat_prefix=EDGE_LISTENER,
        codec_type=Hcm.AUTO,
        scoped_routes=_scopes(),
        http_filters=_filters(edge),
        use_remote_address=BoolValue(value=True),
        # the request key is ours: a caller's own id would pair replies that are not one
        generate_request_id=BoolValue(value=True),
        preserve_external_request_id=False,
        always_set_request_id_in_response=True,
        max_request_headers_kb=UInt32Value(value=MAX_HEADERS_KIB),
        # the first message is held until it is whole, in the window of its stream
        http2_protocol_options=protocol_pb2.Http2ProtocolOptions(
            initial_stream_window_size=UInt32Value(value=MAX_MESSAGE_BYTES),
            initial_connection_window_size=UInt32Value(value=4 * MAX_MESSAGE_BYTES),
        ),
        stream_idle_timeout=seconds(0),  # every method has its own deadline
        access_log=[refusal_log()],
    )
    if edge.rest:
        connections.local_reply_config.CopyFrom(local_replies())
    connections.early_header_mutation_extensions.add(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=pack(_forged_headers()),
    )
    if edge.otlp:
        connections.tracing.CopyFrom(_tracing())
    return connections


def _scopes() -> http_connection_manager_pb2.ScopedRoutes:
    scoped = http_connection_manager_pb2.ScopedRoutes(
        name="models", rds_config_source=ads(), scoped_rds={"scoped_rds_config_source": ads()}
    )
    fragment = scoped.scope_key_builder.fragments.add()
    fragment.header_value_extractor.name = SCOPE_HEADER
    fragment.header_value_extractor.index = 0
    return scoped


def _forged_headers() -> header_mutation_pb2.HeaderMutation:
    """Remove every `volary-*` header that a client sent, before the first filter."""
    mutations = header_mutation_pb2.HeaderMutation()
    mutations.mutations.add().remove_on_match.key_matcher.prefix = "volary-"
    return mutations


def _load_kept_back() -> replies_pb2.HeaderMutation:
    """Remove the replica's report of its load, which is for Envoy and for no caller."""
    config = replies_pb2.HeaderMutation()
    config.mutations.response_trailers_mutations.add(remove=LOAD_REPORT)
    config.mutations.response_mutations.add(remove=LOAD_REPORT)
    return config


def _filters(edge: Edge) -> list[HttpFilter]:
    services = edge.services.keys()
    return [
        _filter("envoy.filters.http.grpc_web", grpc_web_pb2.GrpcWeb()),
        _transcoder(edge),
        _filter(revocations.JWT_FILTER, _credentials(edge)),
        HttpFilter(name=revocations.NAME, config_discovery=revocations.revocations_source()),
        _script("volary.admit", admission(edge.methods, has_rest=bool(edge.rest))),
        _filter("envoy.filters.http.grpc_field_extraction", _extraction(edge)),
        _script(LUA, routing(edge.methods, services)),
        HttpFilter(name=limits.NAME, config_discovery=limits.limits_source()),
        _filter("envoy.filters.http.header_mutation", _load_kept_back()),
        _filter("envoy.filters.http.router", router_pb2.Router(upstream_log=[attempt_log()])),
    ]


def _transcoder(edge: Edge) -> HttpFilter:
    """Return the transcoder, which refuses what is no method: V2 over HTTP passes it by."""
    name = "envoy.filters.http.grpc_json_transcoder"
    return (
        besides_rest(name, _transcoding(edge)) if edge.rest else _filter(name, _transcoding(edge))
    )


def _transcoding(edge: Edge) -> transcoder_pb2.GrpcJsonTranscoder:
    """Take `POST /package.Service/Method` with JSON for every method of the edge."""
    services = {method.full_name.rpartition(".")[0] for method in edge.methods}
    config = transcoder_pb2.GrpcJsonTranscoder(
        proto_descriptor_bin=_with_error_details(edge.descriptor_set),
        services=sorted(services),
        auto_mapping=True,
        convert_grpc_status=True,
        max_request_body_size=UInt32Value(value=MAX_MESSAGE_BYTES),
        max_response_body_size=UInt32Value(value=MAX_MESSAGE_BYTES),
    )
    config.print_options.preserve_proto_field_names = True
    config.print_options.always_print_primitive_fields = True
    config.request_validation_options.reject_unknown_method = True
    return config


def _with_error_details(descriptor_set: bytes) -> bytes:
    """Add the types that errors carry: no method names them."""
    files = FileDescriptorSet.FromString(descriptor_set)
    if all(each.name != error_details_pb2.DESCRIPTOR.name for each in files.file):
        error_details_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    return files.SerializeToString(deterministic=True)


def _filter(name: str, config: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=pack(config))


def _script(name: str, text: str) -> HttpFilter:
    source = base_pb2.DataSource(inline_string=text)
    return _filter(name, lua_pb2.Lua(default_source_code=source))


def _credentials(edge: Edge) -> jwt_pb2.JwtAuthentication:
    """Verify API keys here and let them through: the replica verifies them again."""
    provider = jwt_pb2.JwtProvider(
        issuer=ISSUER,
        local_jwks=base_pb2.DataSource(inline_string=edge.jwks),
        forward=True,
        require_expiration=True,
        from_headers=[
            jwt_pb2.JwtHeader(name="x-api-key"),
            jwt_pb2.JwtHeader(name="authorization", value_prefix="Bearer "),
        ],
        claim_to_headers=[
            jwt_pb2.JwtClaimToHeader(header_name="volary-project", claim_name="prj"),
            jwt_pb2.JwtClaimToHeader(header_name="volary-principal", claim_name="sub"),
        ],
        payload_in_metadata=revocations.JWT_CLAIMS,
        jwt_cache_config=jwt_pb2.JwtCacheConfig(jwt_cache_size=JWT_CACHE),
    )
    rules = [_open(method.path) for method in edge.methods if method.is_anonymous]
    rules += [_open(path) for path in REST_OPEN if edge.rest]
    everything = route_components_pb2.RouteMatch(prefix="/")
    needed = jwt_pb2.JwtRequirement(provider_name=ISSUER)
    rules.append(jwt_pb2.RequirementRule(match=everything, requires=needed))
    return jwt_pb2.JwtAuthentication(providers={ISSUER: provider}, rules=rules)


def _open(path: str) -> jwt_pb2.RequirementRule:
    return jwt_pb2.RequirementRule(match=route_components_pb2.RouteMatch(path=path))


def _extraction(edge: Edge) -> extraction_pb2.GrpcFieldExtractionConfig:
    return extraction_pb2.GrpcFieldExtractionConfig(
        descriptor_set=base_pb2.DataSource(inline_bytes=edge.descriptor_set),
        extractions_by_method={
            method.full_name: _fields(method)
            for method in edge.methods
            if method.kind is not RouteKind.DEFAULT
        },
    )


def _fields(method: Method) -> extraction_pb2.FieldExtractions:
    names: Iterable[str] = filter(None, (method.field, version_field(method)))
    wanted = extraction_pb2.RequestFieldValueDisposition()
    return extraction_pb2.FieldExtractions(request_field_extractions=dict.fromkeys(names, wanted))


def _tracing() -> Hcm.Tracing:
    telemetry = opentelemetry_pb2.OpenTelemetryConfig(
        grpc_service=grpc_cluster(TELEMETRY_CLUSTER, timeout_s=1), service_name="envoy"
    )
    tracing = Hcm.Tracing(spawn_upstream_span=BoolValue(value=True))
    tracing.provider.CopyFrom(
        http_tracer_pb2.Tracing.Http(
            name="envoy.tracers.opentelemetry", typed_config=pack(telemetry)
        )
    )
    return tracing
