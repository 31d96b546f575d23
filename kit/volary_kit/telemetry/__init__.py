"""Spans behind a small interface (start, end, link), so that the exporter may be replaced.

`Telemetry` is made once per process; code that has none at hand opens `span(...)` and reads
`traceparent()`, which follow the current context (W3C Trace Context).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias
from weakref import WeakKeyDictionary

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from volary_kit.calls import Call
from volary_kit.errors import VolaryError
from volary_kit.telemetry import names, recording
from volary_kit.telemetry.encoding import resource_of
from volary_kit.telemetry.export import DROPPED, BoundedExport, forward, otlp_exporter
from volary_kit.telemetry.otlp import OtlpExporter
from volary_kit.telemetry.recording import TRACEPARENT, TRACESTATE, Recorder

AttributeValue: TypeAlias = str | bool | int | float
Attributes: TypeAlias = Mapping[str, AttributeValue]
Kind = Literal["internal", "server", "client", "producer", "consumer"]

TRACER = "volary"
_KINDS: dict[str, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_FAILED = Status(StatusCode.ERROR)
# a proxy until a provider is installed: to ask for a tracer anew costs more than a span
_tracer = trace.get_tracer(TRACER)
_found: tuple[trace.TracerProvider, _Maker] | None = None
_recorders: WeakKeyDictionary[trace.TracerProvider, _Maker] = WeakKeyDictionary()


class Span:
    """A span that has begun; unless told otherwise it is the current one until it ends."""

    __slots__ = ("_inner", "_thread", "_token")

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
        return _traceparent(self._inner.get_span_context())

    def set(self, name: str, value: AttributeValue) -> None:
        """Set an attribute, named in `names`."""
        self._inner.set_attribute(name, value)

    def update(self, attributes: Attributes) -> None:
        """Set several attributes."""
        self._inner.set_attributes(attributes)

    def link(self, traceparent: str) -> None:
        """Point to a span of another trace; a malformed header is ignored."""
        linked = recording.read({TRACEPARENT: traceparent})
        if linked is not None:
            self._inner.add_link(linked)

    def end(self, code: str = "OK", error: BaseException | None = None) -> None:
        """End the span with the name of a status code."""
        self._inner.set_attribute(names.RPC_CODE, code)
        if code != "OK":
            self._inner.set_status(_FAILED)
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
        self._resource = resource  # the replay-safe provider keeps its own to itself
        sampler = ALWAYS_OFF if exporter is None else ParentBased(ALWAYS_ON)
        self.provider = _provider(resource, sampler, replay_safe=replay_safe)
        recorder = Recorder(resource, TRACER, is_sampling=exporter is not None)
        self._maker = _Maker(recorder, self.provider.get_tracer(TRACER), replay_safe=replay_safe)
        _recorders[self.provider] = self._maker
        self._exporter = exporter if isinstance(exporter, OtlpExporter) else None
        if exporter is not None:
            self.add_processor(BoundedExport(exporter))

    def add_processor(self, processor: SpanProcessor) -> None:
        """Hand every span that ends, the SDK's and the kit's own, to a further processor."""
        self.provider.add_span_processor(processor)
        self._maker.recorder.add(processor)

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
        return _start(self._maker, name, attributes, kind, parent, links)

    def server_span(self, call: Call) -> Span:
        """Begin the span of a call that came in."""
        above = recording.read(_texts(call)) if TRACEPARENT in call.metadata else _current()
        attributes: Attributes = {
            names.RPC_SYSTEM: "grpc",
            names.RPC_METHOD: call.method,
            names.REQUEST_KEY: call.request_key,
        }
        name = call.method.removeprefix("/")
        return Span(self._maker.begin(name, SpanKind.SERVER, attributes, above, ()))

    def client_span(self, method: str) -> tuple[Span, dict[str, str]]:
        """Begin the span of an outgoing call; return it with the W3C headers that carry it.

        It is not made current: it may end in a callback, whose context is another.
        """
        attributes: Attributes = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: method}
        inner = self._maker.begin(
            method.removeprefix("/"), SpanKind.CLIENT, attributes, _current(), ()
        )
        headers = recording.written(inner.get_span_context())
        return Span(inner, is_current=False), headers

    @property
    def resource(self) -> bytes | None:
        """The serialized OTLP `Resource` of this process's spans, None when none leave it."""
        if self._exporter is None:
            return None
        return resource_of(self._resource)

    def forward(self, request: bytes, spans: int, dropped: int = 0) -> None:
        """Export spans that an engine of another language encoded, and count what it dropped."""
        DROPPED.inc(dropped)
        if self._exporter is not None and spans:
            forward(self._exporter, request, spans)

    def close(self) -> None:
        """Export what is queued, within two seconds, and stop."""
        self.provider.shutdown()


class span:  # noqa: N801 - it is used as a function
    """Open a span around a block; an exception ends it as failed and goes on.

    One in which no other begins need not be the current one, which costs a fifth of it.
    """

    __slots__ = ("_arguments", "_is_current", "_opened")

    def __init__(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: Kind = "internal",
        parent: Mapping[str, str] | None = None,
        links: Sequence[str] = (),
        is_current: bool = True,
    ) -> None:
        self._arguments = (name, attributes, kind, parent, links)
        self._is_current = is_current

    def __enter__(self) -> Span:
        maker = _maker_of_process()
        self._opened = _start(maker, *self._arguments, is_current=self._is_current)
        return self._opened

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._opened.end()
        else:
            self._opened.end("UNKNOWN", error)


def start(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    parent: Mapping[str, str] | None = None,
    links: Sequence[str] = (),
) -> Span:
    """Begin a span of the installed provider; the caller ends it."""
    return _start(_maker_of_process(), name, attributes, kind, parent, links)


def _maker_of_process() -> _Maker:
    global _found  # noqa: PLW0603 - to look it up costs a third of a span
    provider = trace.get_tracer_provider()
    if _found is None or _found[0] is not provider:
        _found = provider, _recorders.get(provider) or _Maker(None, _tracer)
    return _found[1]


def traceparent() -> str:
    """Return the W3C header of the current span, empty if there is none."""
    return _traceparent(_current())


def trace_id() -> str:
    """Return the current trace's id, empty if there is none."""
    context = _current()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def trace_headers() -> dict[str, str]:
    """Return the W3C headers that a call out of the current span carries."""
    return recording.written(_current())


def error_type(error: BaseException) -> str:
    """Return a stable word for an error: its reason, else its type."""
    return error.reason if isinstance(error, VolaryError) else type(error).__name__


class _Maker:
    """Begins spans by the kit's recorder, by the SDK where a workflow may be replaying."""

    def __init__(
        self, recorder: Recorder | None, tracer: trace.Tracer, *, replay_safe: bool = False
    ) -> None:
        self._recorder = recorder
        self._tracer = tracer
        self._is_in_workflow: Callable[[], bool] | None = None
        if replay_safe:
            from temporalio import workflow

            self._is_in_workflow = workflow.in_workflow

    @property
    def recorder(self) -> Recorder:
        """The recorder of an installed provider."""
        assert self._recorder is not None
        return self._recorder

    def begin(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes | None,
        parent: SpanContext | None,
        links: Sequence[trace.Link],
    ) -> trace.Span:
        """Begin a span; `parent` None begins a trace."""
        in_workflow = self._is_in_workflow
        if self._recorder is not None and (in_workflow is None or not in_workflow()):
            return self._recorder.begin(name, kind, attributes, parent, links)
        context = trace.set_span_in_context(
            trace.NonRecordingSpan(parent or trace.INVALID_SPAN_CONTEXT)
        )
        return self._tracer.start_span(name, context, kind, attributes, links=links)


def _start(
    maker: _Maker,
    name: str,
    attributes: Attributes | None,
    kind: Kind,
    parent: Mapping[str, str] | None,
    links: Sequence[str],
    *,
    is_current: bool = True,
) -> Span:
    above = recording.read(parent) if parent else _current()
    linked = [trace.Link(found) for text in links if (found := recording.read({TRACEPARENT: text}))]
    inner = maker.begin(name, _KINDS[kind], attributes, above, linked)
    return Span(inner, is_current=is_current)


def _texts(call: Call) -> dict[str, str]:
    return {key: text for key in (TRACEPARENT, TRACESTATE) if (text := call.text(key))}


def _current() -> SpanContext:
    return trace.get_current_span().get_span_context()


def _traceparent(context: SpanContext) -> str:
    return recording.traceparent_of(context) if context.is_valid else ""


def _provider(resource: Resource, sampler: Sampler, *, replay_safe: bool) -> TracerProvider:
    if not replay_safe:
        return TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    from temporalio.contrib.opentelemetry import create_tracer_provider

    return create_tracer_provider(sampler=sampler, resource=resource, shutdown_on_exit=False)  # pyright: ignore[reportReturnType]
