"""One trace from the call that starts an operation to the calls that its handler makes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.util._once import Once
from temporalio.client import Client
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin
from volary.ingest.v1 import ingest_service_pb2 as ingest_pb2
from volary_kit.clock import SystemClock
from volary_kit.operations import Operations
from volary_kit.telemetry import Telemetry
from volary_kit.testing import called


class Collected(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch):
    """Spans of a provider that is this process's one for the length of a test."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    found = Collected()
    telemetry = Telemetry("test", exporter=found, replay_safe=True)
    telemetry.install()
    yield telemetry, found
    telemetry.close()


async def test_one_trace_from_call_to_workflow_to_activity_to_call(
    database, temporal_address: str, collected
):
    telemetry, found = collected
    client = await Client.connect(
        temporal_address, plugins=[OpenTelemetryPlugin(add_temporal_spans=True)]
    )

    async def connected() -> Client:
        return client

    async def work(context, request):
        span, _headers = telemetry.client_span("/a.B/C")  # as a channel of the kit begins it
        span.end()
        return ingest_pb2.StartPullRequest()

    operations = Operations("traced", database, connected, SystemClock())
    operations.register("StartPull", work)
    outer = telemetry.start("call")
    with called():
        async with database.transaction() as transaction:
            request = ingest_pb2.StartPullRequest(source="s", request_id=database.url)
            started = await operations.start(transaction, method="StartPull", request=request)
    outer.end()
    running = asyncio.create_task(operations.run())
    operation_id = started.name.rpartition(".")[2]
    async with asyncio.timeout(30):
        while not (await operations.rows.find(operation_id)).is_done:
            await operations.ended(0.5)
        await client.get_workflow_handle(operation_id).result()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    telemetry.provider.force_flush()
    chain = chain_to(found.spans, "a.B/C", outer.trace_id)
    assert chain[0] == "call"
    assert chain[-2:] == ["operation StartPull", "a.B/C"]
    assert any(name.startswith("StartWorkflow") for name in chain)
    assert any(name.startswith("RunActivity") for name in chain)


def chain_to(spans: list[ReadableSpan], leaf: str, trace_id: str) -> list[str]:
    """Return the names from the root of a trace down to a leaf."""
    by_id = {span.context.span_id: span for span in spans}
    (span,) = [span for span in spans if span.name == leaf]
    assert format(span.context.trace_id, "032x") == trace_id
    names = [span.name]
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        names.append(span.name)
    return names[::-1]
