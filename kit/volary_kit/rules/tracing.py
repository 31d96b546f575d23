"""One server span for each call, child of the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from volary_kit.calls import Call
from volary_kit.rules.chain import Outcome, Rule


class SpanHandle(Protocol):
    """A span that has begun."""

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        ...

    def end(self, code: str, error: BaseException | None) -> None:
        """End the span with the name of a status code."""
        ...


class Tracer(Protocol):
    """Begin the span of a call; the exporter behind it is nobody's business here."""

    def server_span(self, call: Call) -> SpanHandle:
        """Begin a span as child of the trace context in `call.metadata`."""
        ...


class Tracing(Rule):
    """Hold a span open while the call runs."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def before(self, call: Call) -> None:
        span = self._tracer.server_span(call)
        call.span, call.trace_id = span, span.trace_id

    def after(self, call: Call, outcome: Outcome) -> None:
        span: SpanHandle | None = call.span
        if span is not None:
            span.end(outcome.code, outcome.error)


class ClientTracer(Protocol):
    """Begin the span of an outgoing call."""

    def client_span(self, method: str) -> tuple[SpanHandle, Mapping[str, str]]:
        """Begin a span as child of the current one; return it with the headers that carry it."""
        ...
