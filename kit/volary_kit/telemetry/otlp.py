"""Spans as OTLP, to a collector over gRPC.

The messages are the kit's own build of the specification (`volary.otlp.v1`): the published
Python packages of OTLP and of Envoy's API overwrite each other's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, StatusCode
from volary.otlp.v1 import trace_pb2

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
KINDS = {
    "INTERNAL": trace_pb2.SPAN_KIND_INTERNAL,
    "SERVER": trace_pb2.SPAN_KIND_SERVER,
    "CLIENT": trace_pb2.SPAN_KIND_CLIENT,
    "PRODUCER": trace_pb2.SPAN_KIND_PRODUCER,
    "CONSUMER": trace_pb2.SPAN_KIND_CONSUMER,
}
CODES = {
    StatusCode.UNSET: trace_pb2.SPAN_STATUS_CODE_UNSPECIFIED,
    StatusCode.OK: trace_pb2.SPAN_STATUS_CODE_OK,
    StatusCode.ERROR: trace_pb2.SPAN_STATUS_CODE_ERROR,
}


class OtlpExporter(SpanExporter):
    """Send batches to `host:port` or `http(s)://host:port`; a batch has `timeout_s`."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        scheme, _, address = endpoint.rpartition("://")
        address = address.rstrip("/")
        if scheme == "https":
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials())
        else:
            self._channel = grpc.insecure_channel(address)
        self._send: Any = self._channel.unary_unary(
            EXPORT,
            request_serializer=trace_pb2.ExportTraceServiceRequest.SerializeToString,
            response_deserializer=trace_pb2.ExportTraceServiceResponse.FromString,
        )
        self._forward: Any = self._channel.unary_unary(EXPORT)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch; a collector that does not take it is a failure, not an exception."""
        try:
            self._send(request_of(spans), timeout=self._timeout_s)
        except grpc.RpcError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def forward(self, request: bytes) -> bool:
        """Send a serialized `ExportTraceServiceRequest`; say whether the collector took it."""
        try:
            self._forward(request, timeout=self._timeout_s)
        except grpc.RpcError:
            return False
        return True

    def shutdown(self) -> None:
        """Close the connection."""
        self._channel.close()


def request_of(spans: Iterable[ReadableSpan]) -> trace_pb2.ExportTraceServiceRequest:
    """Return the request that carries the spans, grouped by resource and library."""
    groups: dict[tuple[Resource, str, str], list[trace_pb2.Span]] = {}
    for span in spans:
        scope = span.instrumentation_scope
        name, version = ("", "") if scope is None else (scope.name, scope.version or "")
        groups.setdefault((span.resource, name, version), []).append(span_of(span))
    request = trace_pb2.ExportTraceServiceRequest()
    for (resource, name, version), members in groups.items():
        group = request.resource_spans.add()
        group.resource.attributes.extend(_attributes(resource.attributes))
        group.scope_spans.add(
            scope=trace_pb2.InstrumentationScope(name=name, version=version), spans=members
        )
    return request


def span_of(span: ReadableSpan) -> trace_pb2.Span:
    """Return the message of one span."""
    context = span.get_span_context()
    assert context is not None
    return trace_pb2.Span(
        trace_id=_trace_id(context.trace_id),
        span_id=_span_id(context.span_id),
        trace_state=context.trace_state.to_header(),
        parent_span_id=b"" if span.parent is None else _span_id(span.parent.span_id),
        flags=int(context.trace_flags),
        name=span.name,
        kind=KINDS[span.kind.name],
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        attributes=_attributes(span.attributes or {}),
        dropped_attributes_count=span.dropped_attributes,
        events=[
            trace_pb2.SpanEvent(
                time_unix_nano=event.timestamp,
                name=event.name,
                attributes=_attributes(event.attributes or {}),
            )
            for event in span.events
        ],
        dropped_events_count=span.dropped_events,
        links=[_link(link) for link in span.links],
        dropped_links_count=span.dropped_links,
        status=trace_pb2.SpanStatus(
            code=CODES[span.status.status_code], message=span.status.description or ""
        ),
    )


def _link(link: Link) -> trace_pb2.SpanLink:
    return trace_pb2.SpanLink(
        trace_id=_trace_id(link.context.trace_id),
        span_id=_span_id(link.context.span_id),
        trace_state=link.context.trace_state.to_header(),
        attributes=_attributes(link.attributes or {}),
        flags=int(link.context.trace_flags),
    )


def resource_of(resource: Resource) -> trace_pb2.Resource:
    """Return the message of what the spans are of."""
    return trace_pb2.Resource(attributes=_attributes(resource.attributes))


def _trace_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _span_id(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _attributes(attributes: Mapping[str, Any]) -> list[trace_pb2.KeyValue]:
    return [
        _pair(key, value)
        if isinstance(value, str | bool | int)
        else trace_pb2.KeyValue(key=key, value=_value(value))
        for key, value in attributes.items()
    ]


@lru_cache(maxsize=4_096, typed=True)
def _pair(key: str, value: str | bool | int) -> trace_pb2.KeyValue:  # noqa: FBT001 - a value
    """Return an attribute; most are the same in many spans, and copied by whoever takes them."""
    return trace_pb2.KeyValue(key=key, value=_value(value))


def _value(value: Any) -> trace_pb2.AnyValue:
    match value:
        case bool():  # before int, of which it is one
            return trace_pb2.AnyValue(bool_value=value)
        case int():
            return trace_pb2.AnyValue(int_value=value)
        case float():
            return trace_pb2.AnyValue(double_value=value)
        case bytes():
            return trace_pb2.AnyValue(bytes_value=value)
        case list() | tuple():
            values = [_value(element) for element in value]
            return trace_pb2.AnyValue(array_value=trace_pb2.ArrayValue(values=values))
        case _:
            return trace_pb2.AnyValue(string_value=str(value))
