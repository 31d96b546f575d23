"""Small pieces of Envoy's API that every builder needs."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import Mapping

from envoy.config.core.v3 import base_pb2, config_source_pb2, grpc_service_pb2
from envoy.config.route.v3 import route_components_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

MICROS = 1_000_000
TYPE_PREFIX = "type.googleapis.com/"


def pack(message: Message) -> AnyMessage:
    """Wrap a message; maps are written in key order, so that equal messages are equal bytes."""
    return AnyMessage(
        type_url=TYPE_PREFIX + message.DESCRIPTOR.full_name,
        value=message.SerializeToString(deterministic=True),
    )


def seconds(value: float) -> Duration:
    """Return a duration of `value` seconds, exact to the microsecond."""
    micros = round(value * MICROS)
    return Duration(seconds=micros // MICROS, nanos=micros % MICROS * 1_000)


def ads() -> config_source_pb2.ConfigSource:
    """Say that a resource comes by the aggregated stream."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.V3,
    )


def address(host_port: str) -> dict[str, object]:
    """Return the fields of a socket address for `host:port`."""
    host, _, port = host_port.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def set_headers(headers: Mapping[str, str]) -> list[base_pb2.HeaderValueOption]:
    """Return options that replace each header by a value."""
    return [
        base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=key, value=value),
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for key, value in headers.items()
    ]


def has_header(name: str) -> route_components_pb2.HeaderMatcher:
    """Match a request that carries a header, whatever its value."""
    return route_components_pb2.HeaderMatcher(name=name, present_match=True)


def header_is(name: str, value: str) -> route_components_pb2.HeaderMatcher:
    """Match a request whose header has exactly this value."""
    return route_components_pb2.HeaderMatcher(name=name, string_match={"exact": value})


def grpc_cluster(name: str, timeout_s: float = 0) -> grpc_service_pb2.GrpcService:
    """Return a gRPC service behind a cluster."""
    service = grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=name)
    )
    if timeout_s:
        service.timeout.CopyFrom(seconds(timeout_s))
    return service
