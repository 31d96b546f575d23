"""What Envoy tells gateway about each attempt."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from google.protobuf.wrappers_pb2 import UInt32Value

from volary_gateway.xds.edge import CONTROL_PLANE
from volary_gateway.xds.packing import grpc_cluster, pack, seconds

ATTEMPTS = "attempts"
REFUSALS = "refusals"
ATTEMPT_HEADER = "x-envoy-attempt-count"  # Envoy's own, 1 on the first attempt of a call
REQUEST_HEADERS = (
    "volary-project",
    "volary-model",
    "volary-version",
    "volary-route",
    "volary-shadow",
    "volary-user",
    ATTEMPT_HEADER,
)
RESPONSE_HEADERS = ("grpc-status", "volary-version", "volary-tier")
FLUSH_S = 0.1
# some 2,000 records; what is logged while no gateway listens is lost, and found to be
BUFFER_BYTES = 1 << 20
# no host, no cluster, full breaker, no route: a call that ended before an attempt began
NO_ATTEMPT = ("UH", "NC", "UO")


def attempt_log() -> accesslog_pb2.AccessLog:
    """Log every upstream attempt, retries one by one: what a fallback hides is seen here."""
    return accesslog_pb2.AccessLog(
        name="envoy.access_loggers.http_grpc", typed_config=pack(_config(ATTEMPTS))
    )


def refusal_log() -> accesslog_pb2.AccessLog:
    """Log the calls that no attempt was made for."""
    log = accesslog_pb2.AccessLog(
        name="envoy.access_loggers.http_grpc", typed_config=pack(_config(REFUSALS))
    )
    log.filter.response_flag_filter.flags.extend(NO_ATTEMPT)
    return log


def _config(name: str) -> als_pb2.HttpGrpcAccessLogConfig:
    return als_pb2.HttpGrpcAccessLogConfig(
        common_config=als_pb2.CommonGrpcAccessLogConfig(
            log_name=name,
            grpc_service=grpc_cluster(CONTROL_PLANE),
            transport_api_version=config_source_pb2.V3,
            buffer_flush_interval=seconds(FLUSH_S),
            buffer_size_bytes=UInt32Value(value=BUFFER_BYTES),
        ),
        additional_request_headers_to_log=REQUEST_HEADERS,
        additional_response_headers_to_log=RESPONSE_HEADERS,
        additional_response_trailers_to_log=RESPONSE_HEADERS,
    )
