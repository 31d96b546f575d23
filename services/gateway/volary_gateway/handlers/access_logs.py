"""`envoy.service.accesslog.v3.AccessLogService`: one record an attempt becomes evidence."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from volary_kit.timestamps import duration_us, to_us

from volary_gateway.domain.evidence import CANCELLED, DEADLINE, NO_STATUS, Attempt, Variant
from volary_gateway.domain.names import ModelName, RouteName
from volary_gateway.handlers import Context
from volary_gateway.recorder import Recorder
from volary_gateway.xds.logs import ATTEMPT_HEADER, REFUSALS

Entry = accesslog_pb2.HTTPAccessLogEntry
SERVICE: str = als_pb2.DESCRIPTOR.services_by_name["AccessLogService"].full_name
UNAVAILABLE = 14
Hostless = Callable[[ModelName, int], int]
CALLER_LEFT = ("downstream_connection_termination", "downstream_remote_reset")
TIME_OVER = ("upstream_max_stream_duration_reached", "duration_timeout", "upstream_request_timeout")


class AccessLogHandler(als_pb2_grpc.AccessLogServiceServicer):
    """Take what Envoy logs; a stream that ends may have taken records with it."""

    def __init__(self, recorder: Recorder, hostless: Hostless) -> None:
        self._recorder = recorder
        self._hostless = hostless

    async def StreamAccessLogs(
        self,
        request_iterator: AsyncIterator[als_pb2.StreamAccessLogsMessage],
        context: Context,
    ) -> als_pb2.StreamAccessLogsResponse:
        name = ""
        try:
            async for message in request_iterator:
                name = message.identifier.log_name or name
                for entry in message.http_logs.log_entry:
                    self._take(entry, is_refusal=name == REFUSALS)
        finally:
            self._recorder.doubt()
        return als_pb2.StreamAccessLogsResponse()

    def _take(self, entry: Entry, *, is_refusal: bool) -> None:
        cluster = "" if is_refusal else entry.common_properties.upstream_cluster
        attempt = refusal_of(entry, self._hostless) if is_refusal else attempt_of(entry)
        self._recorder.record(cluster, _ended_us(entry), attempt)


def attempt_of(entry: Entry) -> Attempt | None:
    """Return the attempt of a record, None when it is no evidence of a step."""
    headers = entry.request.request_headers
    version = headers.get("volary-version", "")
    variant = _variant(
        headers.get("volary-project", ""), headers.get("volary-route", ""),
        int(version) if version.isdigit() else 0,
        is_shadow=headers.get("volary-shadow") == "true",
    )  # fmt: skip
    if variant is None:
        return None
    return Attempt(
        variant=variant,
        code=_code(entry),
        tier=_reply(entry, "volary-tier"),
        latency_us=_latency_us(entry),
        ended_us=_ended_us(entry),
        user=headers.get("volary-user", ""),
        number=_number(entry),
        has_met=not entry.common_properties.response_flags.upstream_connection_failure,
    )


def refusal_of(entry: Entry, hostless: Hostless) -> Attempt | None:
    """Return the failure of a call that found no host of its version.

    Envoy logs neither version nor cluster of it: whoever knows the replicas tells.
    """
    project = entry.request.request_headers.get("volary-project", "")
    name = RouteName.parse(entry.common_properties.route_name)
    if name is None or not project:
        return None
    version = hostless(ModelName(project, name.model), name.generation)
    variant = _variant(project, str(name), version, is_shadow=False)
    if variant is None:
        return None
    return Attempt(variant, UNAVAILABLE, "", None, _ended_us(entry), number=_number(entry))


def _number(entry: Entry) -> int:
    """Return which attempt of its call a record is of; a mirrored copy has but one."""
    count = entry.request.request_headers.get(ATTEMPT_HEADER, "")
    return int(count) if count.isdigit() else 1


def _variant(project: str, route: str, version: int, *, is_shadow: bool) -> Variant | None:
    name = RouteName.parse(route)
    if name is None or not project:
        return None
    return Variant(
        project, name.model, name.rollout, name.step, name.generation, version, is_shadow
    )


def _code(entry: Entry) -> int:
    """Return the gRPC status of an attempt; without one, who ended it decides."""
    status = _reply(entry, "grpc-status")
    if status.isdigit():
        return int(status)
    flags = entry.common_properties.response_flags
    if any(getattr(flags, flag) for flag in CALLER_LEFT):
        return CANCELLED
    return DEADLINE if any(getattr(flags, flag) for flag in TIME_OVER) else NO_STATUS


def _reply(entry: Entry, key: str) -> str:
    """Return what a reply said: in its trailers, or in its headers when it has no body."""
    response = entry.response
    return response.response_trailers.get(key) or response.response_headers.get(key, "")


def _latency_us(entry: Entry) -> int | None:
    common = entry.common_properties
    if not common.HasField("time_to_last_upstream_rx_byte"):
        return duration_us(common.duration) if common.HasField("duration") else None
    last_us = duration_us(common.time_to_last_upstream_rx_byte)
    return max(0, last_us - duration_us(common.time_to_first_upstream_tx_byte))


def _ended_us(entry: Entry) -> int:
    common = entry.common_properties
    return to_us(common.start_time) + duration_us(common.duration)
