"""Spans: parents, links, headers, and an export that never blocks."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode
from volary_kit import telemetry
from volary_kit.errors import NotFound
from volary_kit.telemetry import Telemetry, export, names
from volary_kit.testing import new_call

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collected(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def collected() -> Collected:
    return Collected()


@pytest.fixture
def tracing(collected: Collected):
    made = Telemetry("test", exporter=collected)
    yield made
    made.close()


def flushed(tracing: Telemetry) -> None:
    assert tracing.provider.force_flush()


def test_server_span_is_the_callers_child_and_the_parent_of_what_follows(tracing, collected):
    call = new_call()
    call.metadata = {"traceparent": PARENT}
    outer = tracing.server_span(call)
    inner = tracing.start("inner")
    inner.end()
    outer.end("OK", None)
    flushed(tracing)
    server = collected.named(call.method[1:])
    child = collected.named("inner")
    assert outer.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert format(server.parent.span_id, "016x") == "b7ad6b7169203331"
    assert child.parent.span_id == server.context.span_id


def test_client_span_carries_headers_and_is_not_current(tracing, collected):
    outer = tracing.start("outer")
    client, headers = tracing.client_span("/a.B/C")
    sibling = tracing.start("sibling")
    sibling.end()
    client.end("UNAVAILABLE", NotFound("GONE", "gone"))
    outer.end()
    flushed(tracing)
    outgoing = collected.named("a.B/C")
    assert headers["traceparent"].split("-")[2] == format(outgoing.context.span_id, "016x")
    assert collected.named("sibling").parent.span_id == collected.named("outer").context.span_id
    assert outgoing.status.status_code is StatusCode.ERROR
    assert outgoing.attributes[names.ERROR_TYPE] == "GONE"


def test_span_that_ended_is_not_current_any_more(tracing):
    before = telemetry.traceparent()
    span = tracing.start("one")
    assert telemetry.traceparent() == span.traceparent
    span.end()
    assert telemetry.traceparent() == before


def test_link_points_to_another_trace_and_nonsense_is_ignored(tracing, collected):
    span = tracing.start("batch", links=[PARENT, "nonsense"])
    span.link(PARENT)
    span.link("")
    span.end()
    flushed(tracing)
    linked = collected.named("batch").links
    assert [format(link.context.span_id, "016x") for link in linked] == ["b7ad6b7169203331"] * 2


def test_malformed_parent_begins_a_new_trace(tracing):
    call = new_call()
    call.metadata = {"traceparent": "00-zz-zz-01"}
    span = tracing.server_span(call)
    assert len(span.trace_id) == 32
    assert int(span.trace_id, 16) != 0
    span.end()


def test_without_endpoint_spans_have_ids_and_go_nowhere():
    quiet = Telemetry("test")
    span = quiet.start("one")
    assert int(span.trace_id, 16) != 0
    assert int(span.traceparent[-2:], 16) & 1 == 0  # not sampled
    span.end()
    quiet.close()


def test_full_queue_drops_and_counts_and_never_blocks():
    release = threading.Event()

    class Stuck(Collected):
        def export(self, spans):
            release.wait(10)
            return super().export(spans)

    stuck = Stuck()
    processor = export.BoundedExport(stuck, max_queue=600)
    made = Telemetry("test", exporter=Collected())
    made.add_processor(processor)
    before = export.DROPPED._value.get()
    for _ in range(3_000):
        made.start("one").end()
    dropped = export.DROPPED._value.get() - before
    assert 3_000 - 600 - export.MAX_BATCH <= dropped <= 3_000 - 600
    release.set()
    assert processor.force_flush(5_000)
    assert len(stuck.spans) == 3_000 - dropped
    made.close()


def test_collector_that_refuses_is_counted():
    class Refusing(Collected):
        def export(self, spans):
            raise RuntimeError("no")

    made = Telemetry("test", exporter=Refusing())
    before = export.FAILED._value.get()
    made.start("one").end()
    flushed(made)
    assert export.FAILED._value.get() - before == 1
    made.close()


def test_every_attribute_name_is_registered_once():
    assert "volary.model" in names.ATTRIBUTES
    constants = [name for name in vars(names) if name.isupper() and name != "ATTRIBUTES"]
    assert len(constants) == len(names.ATTRIBUTES)
