"""The kit's own recording of spans, in a fifth of the SDK's time a span.

A span here is one of OpenTelemetry's API, current in its context and parent to whatever the SDK
makes inside; it goes to the same processors when it ends. Left out is what the mesh does not
use: samplers that look at names, limits, a hook when a span starts.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
PLAIN = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
SAMPLED, RANDOM_ID = 1, 2  # W3C Trace Context level 2
UNSET = Status(StatusCode.UNSET)
NO_STATE = TraceState()
_W3C = TraceContextTextMapPropagator()


class Recorder:
    """Begins spans and hands them to the processors when they end.

    A span without a parent is sampled when `is_sampling`; a child is when its parent was.
    """

    def __init__(self, resource: Resource, scope: str, *, is_sampling: bool) -> None:
        self.resource = resource
        self.scope = InstrumentationScope(scope)
        self._is_sampling = is_sampling
        self._root_flags = TraceFlags(RANDOM_ID | (SAMPLED if is_sampling else 0))
        self._processors: tuple[SpanProcessor, ...] = ()

    def add(self, processor: SpanProcessor) -> None:
        """Hand every span that ends from now on to a further processor."""
        self._processors = (*self._processors, processor)

    def begin(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        parent: SpanContext | None,
        links: Sequence[trace.Link] = (),
    ) -> Recorded:
        """Begin a span, child of `parent` if that is one of a trace."""
        # ids guard nothing; a generator per process, seeded by the operating system
        span_id = random.getrandbits(64) or 1
        if parent is not None and parent.is_valid:
            trace_id, _, _, flags, state, _ = parent  # a property each costs more than the tuple
            if not self._is_sampling:
                flags = TraceFlags(flags & ~SAMPLED)
        else:
            parent = None
            trace_id, flags, state = random.getrandbits(128) or 1, self._root_flags, NO_STATE
        context = SpanContext(trace_id, span_id, False, flags, state)
        return Recorded(self, name, context, parent, kind, attributes, links)

    def ended(self, span: Recorded) -> None:
        """Hand a sampled span on."""
        for processor in self._processors:
            processor.on_end(cast("ReadableSpan", span))


class Recorded(trace.Span):
    """A span that has begun; what is set after its end is ignored.

    Processors are handed the span itself: it has the attributes of the SDK's `ReadableSpan`, and
    to copy it into one costs as much as to record it.
    """

    dropped_attributes = dropped_events = dropped_links = 0

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        links: Sequence[trace.Link],
    ) -> None:
        self._recorder = recorder
        self.name = name
        self.context = context
        self.parent = parent
        self.kind = kind
        self._is_open = bool(context.trace_flags & SAMPLED)
        self.attributes: dict[str, Any] = dict(attributes or ()) if self._is_open else {}
        self.links = list(links)
        self.events: list[Event] = []
        self.status = UNSET
        self.start_time = time.time_ns()
        self.end_time = 0

    def get_span_context(self) -> SpanContext:
        return self.context

    def is_recording(self) -> bool:
        return self._is_open

    def set_attribute(self, key: str, value: Any) -> None:
        if self._is_open:
            self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        if self._is_open:
            self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        if self._is_open:
            self.events.append(Event(name, attributes, timestamp))

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        if self._is_open:
            self.links.append(trace.Link(context, attributes))

    def update_name(self, name: str) -> None:
        self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 - OpenTelemetry's signature
    ) -> None:
        """Note the type of an exception; its text may hold anything and stays here."""
        noted = {"exception.type": type(exception).__qualname__, "exception.escaped": str(escaped)}
        self.add_event("exception", {**noted, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self.end_time = end_time or time.time_ns()
        self._recorder.ended(self)

    @property
    def resource(self) -> Resource:
        """What the span is of."""
        return self._recorder.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """The library that recorded it."""
        return self._recorder.scope


def read(headers: Mapping[str, str]) -> SpanContext | None:
    """Return the span that W3C headers name, None where they name none."""
    plain = PLAIN.fullmatch(headers.get(TRACEPARENT, ""))
    if plain is None or TRACESTATE in headers:
        found = trace.get_current_span(_W3C.extract(headers, Context())).get_span_context()
        return found if found.is_valid else None
    trace_id, span_id, flags = (int(part, 16) for part in plain.groups())
    found = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return found if found.is_valid else None


def written(context: SpanContext) -> dict[str, str]:
    """Return the W3C headers that name a span, none for one that is of no trace."""
    if not context.is_valid:
        return {}
    headers = {TRACEPARENT: traceparent_of(context)}
    if context.trace_state:
        headers[TRACESTATE] = context.trace_state.to_header()
    return headers


def traceparent_of(context: SpanContext) -> str:
    """Return the W3C header that names a span of a trace."""
    flags = int(context.trace_flags)
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
