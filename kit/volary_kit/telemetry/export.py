"""Spans leave by a thread of their own through a bounded queue; what does not fit is counted."""

from __future__ import annotations

import logging
import threading
from collections import deque

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import Counter

from volary_kit.telemetry.otlp import OtlpExporter

log = logging.getLogger(__name__)

MAX_QUEUE = 8_192  # about 8 MB of spans
MAX_BATCH = 512
INTERVAL_S = 0.5
TIMEOUT_S = 5.0
FLUSH_S = 2.0

DROPPED = Counter("volary_spans_dropped_total", "Spans that found the export queue full")
FAILED = Counter("volary_spans_failed_total", "Spans that the collector did not take")
EXPORTED = Counter("volary_spans_exported_total", "Spans that the collector took")


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Return an exporter to `host:port` or `http(s)://host:port`."""
    return OtlpExporter(endpoint, TIMEOUT_S)


def forward(exporter: OtlpExporter, request: bytes, spans: int) -> None:
    """Send spans that an engine of another language encoded; counted as all others."""
    (EXPORTED if exporter.forward(request) else FAILED).inc(spans)


class BoundedExport(SpanProcessor):
    """Queue ended spans and export them in batches; never blocks the caller."""

    def __init__(self, exporter: SpanExporter, *, max_queue: int = MAX_QUEUE) -> None:
        self._exporter = exporter
        self._max_queue = max_queue
        self._queue: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="span-export", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: only ended spans leave."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span, or count it as dropped."""
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        if len(self._queue) >= self._max_queue:
            DROPPED.inc()
            return
        if self._idle.is_set():
            self._idle.clear()
        self._queue.append(span)
        if len(self._queue) >= MAX_BATCH:
            self._wake.set()

    def shutdown(self) -> None:
        """Export what is queued within `FLUSH_S`, then stop."""
        self._is_stopping = True
        self.force_flush(int(FLUSH_S * 1_000))
        self._exporter.shutdown()
        self._thread.join(FLUSH_S)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what is queued; say whether that worked out in time."""
        self._wake.set()
        return self._idle.wait(timeout_millis / 1_000)

    def _run(self) -> None:
        while True:
            self._wake.wait(INTERVAL_S)
            self._wake.clear()
            while self._queue:
                self._export()
            self._idle.set()
            if self._is_stopping:
                return

    def _export(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
        try:
            result = self._exporter.export(batch)
        except Exception:  # a collector's trouble must not end the export for good
            log.exception("spans could not be exported")
            result = SpanExportResult.FAILURE
        (EXPORTED if result is SpanExportResult.SUCCESS else FAILED).inc(len(batch))
