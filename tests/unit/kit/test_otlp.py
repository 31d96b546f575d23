"""Spans over the wire, to something that speaks the collector's side."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from volary.otlp.v1 import trace_pb2
from volary_kit.telemetry import Telemetry
from volary_kit.telemetry.otlp import EXPORT

SERVICE, METHOD = EXPORT[1:].split("/")


@dataclass
class Collector:
    """Keeps what it is sent; refuses everything while `is_down`."""

    address: str = ""
    is_down: bool = False
    received: list[trace_pb2.ExportTraceServiceRequest] = field(default_factory=list)

    def export(self, request: trace_pb2.ExportTraceServiceRequest, context: Any) -> Any:
        if self.is_down:
            context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.received.append(request)
        return trace_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, trace_pb2.Span]:
        return {
            span.name: span
            for request in self.received
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        found.export,
        trace_pb2.ExportTraceServiceRequest.FromString,
        trace_pb2.ExportTraceServiceResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(None).wait()


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_spans_arrive_with_all_that_is_known_of_them(collector: Collector, scheme: str) -> None:
    telemetry = Telemetry("birds", instance="2", endpoint=scheme + collector.address)
    other = telemetry.start("other")
    other.end()
    outer = telemetry.start("outer", {"text": "x", "yes": True, "n": 7, "f": 0.5}, kind="server")
    inner = telemetry.start("inner", links=[other.traceparent])
    inner.end("NOT_FOUND", ValueError("gone"))
    outer.end()
    telemetry.close()
    spans = collector.spans()
    assert spans["outer"].trace_id.hex() == outer.trace_id
    assert spans["inner"].parent_span_id == spans["outer"].span_id
    assert spans["inner"].trace_id == spans["outer"].trace_id
    assert spans["inner"].links[0].span_id == spans["other"].span_id
    assert spans["inner"].status.code == trace_pb2.SPAN_STATUS_CODE_ERROR
    assert spans["outer"].kind == trace_pb2.SPAN_KIND_SERVER
    assert spans["outer"].start_time_unix_nano <= spans["inner"].start_time_unix_nano
    values = {pair.key: pair.value for pair in spans["outer"].attributes}
    assert (values["text"].string_value, values["n"].int_value) == ("x", 7)
    assert (values["yes"].bool_value, values["f"].double_value) == (True, 0.5)
    resource = {
        pair.key: pair.value.string_value
        for pair in collector.received[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "volary-birds"
    assert resource["service.instance.id"] == "2"


def test_attributes_of_every_kind_and_length_arrive_as_they_were(collector: Collector) -> None:
    telemetry = Telemetry("birds", endpoint=collector.address)
    texts = {f"text {n}": "\u00fc" * n for n in (0, 16, 32, 33, 63, 64, 127, 128, 20_000)}
    numbers = {f"number {n}": n for n in (0, 1, 1_023, 1_024, -1, 1 << 40, (1 << 63) - 1)}
    for _ in range(2):  # the second time what was seen before is not encoded again
        telemetry.start("all", {**texts, **numbers, "either": True}).end()
        telemetry.start("one", {"either": 1, "text 0": "other"}).end()
    telemetry.close()
    spans = collector.spans()
    values = {pair.key: pair.value for pair in spans["all"].attributes}
    assert {key: values[key].string_value for key in texts} == texts
    assert {key: values[key].int_value for key in numbers} == numbers
    assert values["either"].WhichOneof("value") == "bool_value"
    other = {pair.key: pair.value for pair in spans["one"].attributes}
    assert other["either"].WhichOneof("value") == "int_value"
    assert other["text 0"].string_value == "other"


@pytest.mark.parametrize("replay_safe", [False, True])
def test_what_encodes_its_own_spans_is_told_whose_they_are(
    collector: Collector, *, replay_safe: bool
) -> None:
    telemetry = Telemetry("birds", endpoint=collector.address, replay_safe=replay_safe)
    found = trace_pb2.Resource.FromString(telemetry.resource or b"")
    telemetry.close()
    assert {pair.key: pair.value.string_value for pair in found.attributes}["service.name"] == (
        "volary-birds"
    )
    assert Telemetry("birds", replay_safe=replay_safe).resource is None


def test_a_collector_that_refuses_costs_spans_and_nothing_else(collector: Collector) -> None:
    collector.is_down = True
    telemetry = Telemetry("birds", endpoint=collector.address)
    telemetry.start("lost").end()
    telemetry.close()
    assert collector.spans() == {}


def test_the_bytes_are_those_of_the_messages(collector: Collector) -> None:
    telemetry = Telemetry("birds", endpoint=collector.address)
    values = {
        "text": "x" * 300,
        "none": "",
        "café": "größe",
        "negative": -7,
        "large": 1 << 62,
        "zero": 0,
        "no": False,
        "f": -0.25,
        "many": ["a", "b"],
        "data": b"\x00\xff",
    }
    outer = telemetry.start("outer " + "n" * 200)
    inner = outer._inner
    inner.set_attributes(values)
    inner.add_event("seen", {"n": 1}, 7)
    outer.end()
    other = telemetry.start("other", parent={"traceparent": outer.traceparent, "tracestate": "a=b"})
    other.end()
    telemetry.close()
    spans = collector.spans()
    first, second = spans["outer " + "n" * 200], spans["other"]
    found = {pair.key: pair.value for pair in first.attributes}
    assert found["text"].string_value == "x" * 300
    assert found["none"].WhichOneof("value") == "string_value"
    assert found["café"].string_value == "größe"
    assert (found["negative"].int_value, found["large"].int_value) == (-7, 1 << 62)
    assert found["zero"].WhichOneof("value") == "int_value"
    assert found["no"].WhichOneof("value") == "bool_value"
    assert found["f"].double_value == -0.25
    assert [each.string_value for each in found["many"].array_value.values] == ["a", "b"]
    assert found["data"].bytes_value == b"\x00\xff"
    (event,) = first.events
    assert (event.name, event.time_unix_nano, event.attributes[0].value.int_value) == ("seen", 7, 1)
    assert first.end_time_unix_nano >= first.start_time_unix_nano > 0
    assert first.parent_span_id == b""
    assert (second.parent_span_id, second.trace_state) == (first.span_id, "a=b")
    assert second.flags & 1
    assert second.HasField("status")
