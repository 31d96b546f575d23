"""Ended spans as the bytes of an OTLP request, written as they go on the wire.

A process under load ends three spans a call: building a message for each, with one for every
attribute, costs five times what its bytes do. What is rare (events, links, lists) is a message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, StatusCode
from volary.otlp.v1 import trace_pb2

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
# each field's tag: its number and how its value is written
TRACE_ID, SPAN_ID, TRACE_STATE, PARENT = b"\x0a\x10", b"\x12\x08", b"\x1a", b"\x22\x08"
NAME, KIND, ATTRIBUTE, EVENT, LINK, STATUS = b"\x2a", b"\x30", b"\x4a", b"\x5a", b"\x6a", b"\x7a"
TIMES = struct.Struct("<BQBQ")  # start and end, each after its tag
START_TAG, END_TAG = 0x39, 0x41
FLAGS = struct.Struct("<HI")
FLAGS_TAG = 0x0185
DOUBLE = struct.Struct("<d")
FIRST, SECOND = b"\x0a", b"\x12"  # fields 1 and 2 with a length
SHORT = [bytes((number,)) for number in range(0x80)]
MASK = (1 << 64) - 1
# longer texts are ids, of which no two are the same, and larger numbers are measured
CACHED_TEXT, CACHED_NUMBERS = 32, 1_024


def request_of(spans: Iterable[ReadableSpan]) -> bytes:
    """Return the serialized `ExportTraceServiceRequest` of spans, by resource and library."""
    # both are one object a process, and to compare what they hold costs more than the span
    groups: dict[tuple[int, int], tuple[ReadableSpan, list[bytes]]] = {}
    for span in spans:
        group = id(span.resource), id(span.instrumentation_scope)
        _, members = groups.get(group) or groups.setdefault(group, (span, []))
        data = span_of(span)
        members += (SECOND, _length(data), data)
    return b"".join(_field(FIRST, _group(*group)) for group in groups.values())


def _group(one: ReadableSpan, members: list[bytes]) -> bytes:
    of = one.instrumentation_scope
    name, version = ("", "") if of is None else (of.name, of.version or "")
    scope = trace_pb2.InstrumentationScope(name=name, version=version).SerializeToString()
    spans = b"".join([_field(FIRST, scope), *members])
    return _field(FIRST, resource_of(one.resource)) + _field(SECOND, spans)


def resource_of(resource: Resource) -> bytes:
    """Return the serialized `Resource` of what the spans are of."""
    return b"".join(_field(FIRST, _pair(*each)) for each in resource.attributes.items())


def span_of(span: ReadableSpan) -> bytes:
    """Return one serialized `Span`."""
    context, parent = span.context, span.parent
    assert context is not None
    parts = [
        *(TRACE_ID, context.trace_id.to_bytes(16, "big")),
        *(SPAN_ID, context.span_id.to_bytes(8, "big")),
    ]
    if context.trace_state:
        parts.append(_field(TRACE_STATE, context.trace_state.to_header().encode()))
    if parent is not None:
        parts += (PARENT, parent.span_id.to_bytes(8, "big"))
    parts += (
        _name(span.name, span.kind.name),
        TIMES.pack(START_TAG, span.start_time or 0, END_TAG, span.end_time or 0),
    )
    parts += _attributes(span.attributes or {})
    if span.events or span.links or span.dropped_attributes:
        parts += _rare(span)
    parts += (
        _status(span.status.status_code, span.status.description or ""),
        FLAGS.pack(FLAGS_TAG, int(context.trace_flags)),
    )
    return b"".join(parts)


def _attributes(attributes: Mapping[str, Any]) -> list[bytes]:
    """Return the attributes of a span, each as one of its fields, in parts."""
    parts: list[bytes] = []
    for key, value in attributes.items():
        kind = type(value)
        if kind is str and len(value) > CACHED_TEXT:
            text = value.encode(errors="replace")
            parts += (_head(key, len(text)), text)
        elif kind is str or kind is bool or (kind is int and 0 <= value < CACHED_NUMBERS):
            parts.append(_cached(key, value))
        else:
            parts.append(_field(ATTRIBUTE, _pair(key, value)))
    return parts


@lru_cache(maxsize=1_024)
def _name(name: str, kind: str) -> bytes:
    return _field(NAME, name.encode(errors="replace")) + KIND + SHORT[KINDS[kind]]


@lru_cache(maxsize=64)
def _status(code: StatusCode, text: str) -> bytes:
    status = trace_pb2.SpanStatus(code=CODES[code], message=text)
    return _field(STATUS, status.SerializeToString())


def _rare(span: ReadableSpan) -> Iterator[bytes]:
    for event in span.events:
        message = trace_pb2.SpanEvent(
            time_unix_nano=event.timestamp,
            name=event.name,
            attributes=_messages(event.attributes or {}),
        )
        yield _field(EVENT, message.SerializeToString())
    for link in span.links:
        yield _field(LINK, _link(link).SerializeToString())
    for tag, count in (
        (b"\x50", span.dropped_attributes),
        (b"\x60", span.dropped_events),
        (b"\x70", span.dropped_links),
    ):
        if count:
            yield tag + _varint(count)


def _link(link: Link) -> trace_pb2.SpanLink:
    return trace_pb2.SpanLink(
        trace_id=link.context.trace_id.to_bytes(16, "big"),
        span_id=link.context.span_id.to_bytes(8, "big"),
        trace_state=link.context.trace_state.to_header(),
        attributes=_messages(link.attributes or {}),
        flags=int(link.context.trace_flags),
    )


def _messages(attributes: Mapping[str, Any]) -> list[trace_pb2.KeyValue]:
    return [trace_pb2.KeyValue.FromString(_pair(*each)) for each in attributes.items()]


def _pair(key: str, value: Any) -> bytes:
    """Return an attribute as a serialized `KeyValue`."""
    return _key(key) + _field(SECOND, _value(value))


@lru_cache(maxsize=4_096, typed=True)
def _cached(key: str, value: str | int) -> bytes:
    """Return an attribute as a field of a span."""
    return _field(ATTRIBUTE, _pair(key, value))


@lru_cache(maxsize=4_096)
def _head(key: str, size: int) -> bytes:
    """Return what stands before the text of an attribute of a span, by the size of the text."""
    value = FIRST + _varint(size)
    pair = _key(key) + SECOND + _varint(len(value) + size) + value
    return ATTRIBUTE + _varint(len(pair) + size) + pair


@lru_cache(maxsize=1_024)
def _key(key: str) -> bytes:
    return _field(FIRST, key.encode(errors="replace"))


def _value(value: Any) -> bytes:
    """Return a serialized `AnyValue`."""
    match value:
        case bool():  # before int, of which it is one
            return b"\x10\x01" if value else b"\x10\x00"
        case int():
            return b"\x18" + _varint(value & MASK)
        case float():
            return b"\x21" + DOUBLE.pack(value)
        case bytes():
            return _field(b"\x3a", value)
        case list() | tuple():
            return _field(b"\x2a", _list(value))
        case _:
            return _field(FIRST, str(value).encode(errors="replace"))


def _list(values: Sequence[Any]) -> bytes:
    return b"".join(_field(FIRST, _value(each)) for each in values)


def _field(tag: bytes, data: bytes) -> bytes:
    return tag + _length(data) + data


def _length(data: bytes) -> bytes:
    size = len(data)
    return SHORT[size] if size < len(SHORT) else _varint(size)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
