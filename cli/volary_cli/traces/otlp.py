"""From OTLP messages to spans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from volary.otlp.v1 import trace_pb2
from volary.otlp.v1.trace_pb2 import AnyValue, ExportTraceServiceRequest, KeyValue

from volary_cli.traces.spans import Span

ID_BYTES, SPAN_ID_BYTES = 16, 8
TEXT_CHARACTERS = 1_024
LAST_NS = (1 << 63) - 1  # of a bigint
UNKNOWN_SERVICE = "unknown"
ERROR = trace_pb2.SPAN_STATUS_CODE_ERROR


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield the well-formed spans of a request; one without proper ids cannot be kept."""
    for resource_spans in request.resource_spans:
        resource = dict(_attributes(resource_spans.resource.attributes))
        service = str(resource.get("service.name", UNKNOWN_SERVICE))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if _is_keepable(span):
                    yield _span(span, service)


def _is_keepable(span: trace_pb2.Span) -> bool:
    has_ids = len(span.trace_id) == ID_BYTES and len(span.span_id) == SPAN_ID_BYTES
    return has_ids and max(span.start_time_unix_nano, span.end_time_unix_nano) <= LAST_NS


def _span(span: trace_pb2.Span, service: str) -> Span:
    kind = trace_pb2.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
    is_error = span.status.code == ERROR
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        service=_text(service),
        name=_text(span.name),
        kind=kind,
        start_ns=span.start_time_unix_nano,
        end_ns=max(span.start_time_unix_nano, span.end_time_unix_nano),
        error=_text(span.status.message or "error") if is_error else None,
        attributes=dict(_attributes(span.attributes)),
    )


def _attributes(pairs: Iterable[KeyValue]) -> Iterator[tuple[str, Any]]:
    for pair in pairs:
        yield _text(pair.key), _value(pair.value)


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "string_value":
            return _text(value.string_value)
        case "bool_value" | "int_value":
            return getattr(value, kind)
        case _:  # a float may be NaN, which JSON has not; lists and maps are rare
            return _text(str(getattr(value, kind)))


def _text(text: str) -> str:
    """Return text that Postgres takes: no NUL, not endless."""
    return text.replace("\0", "")[:TEXT_CHARACTERS]
