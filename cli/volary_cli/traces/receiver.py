"""Take spans without ever making a caller wait for the database."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import Counter
from volary.otlp.v1 import trace_pb2
from volary_kit.database import BROKEN

from volary_cli.traces.otlp import spans_of
from volary_cli.traces.spans import Span
from volary_cli.traces.store import SpanStore

BATCH = 2_000
RETRY_S = 0.5
RECEIVED = Counter("volary_traces_spans_received", "Spans that were taken.")
DROPPED = Counter("volary_traces_spans_dropped", "Spans that found the queue full.")


class SpanQueue:
    """A bounded queue between the callers and the table."""

    def __init__(self, store: SpanStore, capacity: int) -> None:
        self._store = store
        self._queue: asyncio.Queue[Span] = asyncio.Queue(capacity)

    def offer(self, span: Span) -> bool:
        """Take a span, or say that there is no room."""
        try:
            self._queue.put_nowait(span)
        except asyncio.QueueFull:
            DROPPED.inc()
            return False
        RECEIVED.inc()
        return True

    async def write(self) -> None:
        """Write batches for ever; a batch that the database refuses is tried again."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._write(batch)

    async def _write(self, batch: list[Span]) -> None:
        while True:
            try:
                await self._store.add(batch)
            except BROKEN:
                await asyncio.sleep(RETRY_S)
            else:
                return


class TraceHandler:
    """`opentelemetry.proto.collector.trace.v1.TraceService`."""

    def __init__(self, queue: SpanQueue) -> None:
        self._queue = queue

    async def Export(
        self,
        request: trace_pb2.ExportTraceServiceRequest,
        context: Any,  # noqa: ARG002
    ) -> trace_pb2.ExportTraceServiceResponse:
        sent = sum(
            len(scope.spans) for group in request.resource_spans for scope in group.scope_spans
        )
        kept = sum(self._queue.offer(span) for span in spans_of(request))
        reply = trace_pb2.ExportTraceServiceResponse()
        if kept < sent:
            reply.partial_success.rejected_spans = sent - kept
            reply.partial_success.error_message = "no room, or ids of a wrong length"
        return reply
