"""Spans behind a small interface (start, end, link), so that the exporter may be replaced.

`Telemetry` is made once per process; code that has none at hand opens `span(...)` and reads
`traceparent()`, which follow the current context (W3C Trace Context).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from volary_kit.calls import Call
from volary_kit.errors import VolaryError
from volary_kit.telemetry import names
from volary_kit.telemetry.export import BoundedExport, otlp_exporter

AttributeValue: TypeAlias = str | bool | int | float
Attributes: TypeAlias = Mapping[str, AttributeValue]
Kind = Literal["internal", "server", "client", "producer", "consumer"]

TRACER = "volary"
TRACEPARENT = "traceparent"
_KINDS: dict[str, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_W3C = TraceContextTextMapPropagator()
_TRACE_KEYS = (TRACEPARENT, "tracestate")
# a proxy until a provider is installed: to ask for a tracer anew costs more than a span
_tracer = trace.get_tracer(TRACER)


class Span:
    """A span that has begun; unless told otherwise it is the current one until it ends."""

    def __init__(self, inner: trace.Span, *, is_current: bool = True) -> None:
        self._inner = inner
        self._token = contexts.attach(trace.set_span_in_context(inner)) if is_current else None
        self._thread = threading.get_ident()

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hex digits."""
        return trace.format_trace_id(self._inner.get_span_context().trace_id)

    @property
    def traceparent(self) -> str:
        """The W3C header that makes another span a child of this one."""
        return _traceparent(self._inner)

    def set(self, name: str, value: AttributeValue) -> None:
        """Set an attribute, named in `names`."""
        self._inner.set_attribute(name, value)

    def link(self, traceparent: str) -> None:
        """Point to a span of another trace; a malformed header is ignored."""
        linked = _span_context(traceparent)
        if linked is not None:
            self._inner.add_link(linked)

    def end(self, code: str = "OK", error: BaseException | None = None) -> None:
        """End the span with the name of a status code."""
        self._inner.set_attribute(names.RPC_CODE, code)
        if code != "OK":
            self._inner.set_status(Status(StatusCode.ERROR))
        if error is not None:
            self._inner.set_attribute(names.ERROR_TYPE, error_type(error))
        self._inner.end()
        # a sync stream may end on another thread, whose context knows no token of ours
        if self._token is not None and threading.get_ident() == self._thread:
            contexts.detach(self._token)


class Telemetry:
    """Makes the spans of a process, and exports them where an endpoint is set.

    Without an endpoint spans carry ids for logs and replies and cost next to nothing.
    `replay_safe` is for a process that runs Temporal workflows.
    """

    def __init__(
        self,
        service: str,
        *,
        instance: str = "0",
        endpoint: str | None = None,
        exporter: SpanExporter | None = None,
        replay_safe: bool = False,
    ) -> None:
        if exporter is None and endpoint is not None:
            exporter = otlp_exporter(endpoint)
        resource = Resource.create(
            {"service.name": f"volary-{service}", "service.instance.id": instance}
        )
        sampler = ALWAYS_OFF if exporter is None else ParentBased(ALWAYS_ON)
        self.provider = _provider(resource, sampler, replay_safe=replay_safe)
        if exporter is not None:
            self.provider.add_span_processor(BoundedExport(exporter))
        self._tracer = self.provider.get_tracer(TRACER)

    def install(self) -> None:
        """Make this the provider of `span(...)` and of the Temporal plugin in this process."""
        trace.set_tracer_provider(self.provider)

    def start(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: Kind = "internal",
        parent: Mapping[str, str] | None = None,
        links: Sequence[str] = (),
    ) -> Span:
        """Begin a span, child of the W3C headers in `parent`, else of the current span."""
        return _start(self._tracer, name, attributes, kind, parent, links)

    def server_span(self, call: Call) -> Span:
        """Begin the span of a call that came in."""
        parent = {key: call.text(key) for key in _TRACE_KEYS if call.text(key)}
        attributes: Attributes = {
            names.RPC_SYSTEM: "grpc",
            names.RPC_METHOD: call.method,
            names.REQUEST_KEY: call.request_key,
        }
        return self.start(call.method.removeprefix("/"), attributes, kind="server", parent=parent)

    def client_span(self, method: str) -> tuple[Span, dict[str, str]]:
        """Begin the span of an outgoing call; return it with the W3C headers that carry it.

        It is not made current: it may end in a callback, whose context is another.
        """
        attributes: Attributes = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: method}
        inner = self._tracer.start_span(
            method.removeprefix("/"), kind=SpanKind.CLIENT, attributes=attributes
        )
        headers: dict[str, str] = {}
        _W3C.inject(headers, trace.set_span_in_context(inner))
        return Span(inner, is_current=False), headers

    def close(self) -> None:
        """Export what is queued, within two seconds, and stop."""
        self.provider.shutdown()


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    parent: Mapping[str, str] | None = None,
    links: Sequence[str] = (),
) -> Iterator[Span]:
    """Open a span around a block; an exception ends it as failed and goes on."""
    opened = start(name, attributes, kind=kind, parent=parent, links=links)
    try:
        yield opened
    except BaseException as error:
        opened.end("UNKNOWN", error)
        raise
    opened.end()


def start(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    parent: Mapping[str, str] | None = None,
    links: Sequence[str] = (),
) -> Span:
    """Begin a span of the installed provider; the caller ends it."""
    return _start(_tracer, name, attributes, kind, parent, links)


def traceparent() -> str:
    """Return the W3C header of the current span, empty if there is none."""
    return _traceparent(trace.get_current_span())


def trace_id() -> str:
    """Return the current trace's id, empty if there is none."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def trace_headers() -> dict[str, str]:
    """Return the W3C headers that a call out of the current span carries."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


def error_type(error: BaseException) -> str:
    """Return a stable word for an error: its reason, else its type."""
    return error.reason if isinstance(error, VolaryError) else type(error).__name__


def _start(
    tracer: trace.Tracer,
    name: str,
    attributes: Attributes | None,
    kind: Kind,
    parent: Mapping[str, str] | None,
    links: Sequence[str],
) -> Span:
    context: Context | None = _W3C.extract(parent, Context()) if parent else None
    linked = [trace.Link(found) for text in links if (found := _span_context(text))]
    return Span(tracer.start_span(name, context, _KINDS[kind], attributes, links=linked))


def _span_context(traceparent: str) -> trace.SpanContext | None:
    context = _W3C.extract({TRACEPARENT: traceparent}, Context())
    found = trace.get_current_span(context).get_span_context()
    return found if found.is_valid else None


def _traceparent(span: trace.Span) -> str:
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    flags = int(context.trace_flags)
    ids = f"{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
    return f"00-{ids}-{flags:02x}"


def _provider(resource: Resource, sampler: Sampler, *, replay_safe: bool) -> TracerProvider:
    if not replay_safe:
        return TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    from temporalio.contrib.opentelemetry import create_tracer_provider

    return create_tracer_provider(sampler=sampler, resource=resource, shutdown_on_exit=False)  # pyright: ignore[reportReturnType]
