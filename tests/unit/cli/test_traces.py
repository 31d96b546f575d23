"""The trace receiver: what it keeps, how it is found again."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import grpc
import pytest
from volary.otlp.v1.trace_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from volary_cli.launcher.databases import Databases
from volary_cli.launcher.engines import PostgresEngine, free_port
from volary_cli.launcher.processes import Command, spawn
from volary_cli.launcher.readiness import HealthProbe
from volary_cli.traces.otlp import spans_of
from volary_cli.traces.receiver import SpanQueue, TraceHandler
from volary_cli.traces.spans import Span, forest
from volary_cli.traces.store import SpanStore, opened_store

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MS = 1_000_000
NOW = 1_700_000_000_000 * MS
TRACE = "ab" * 16


def span(number: int, parent: int = 0, *, trace: str = TRACE, start_ms: int = 0, **more: object):
    fields: dict = {
        "trace_id": trace,
        "span_id": f"{number:016x}",
        "parent_id": f"{parent:016x}" if parent else "",
        "service": "gateway",
        "name": f"span {number}",
        "kind": "server",
        "start_ns": NOW + start_ms * MS,
        "end_ns": NOW + (start_ms + 10) * MS,
    }
    return Span(**(fields | more))


def request_of(*numbers: int) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    name = group.resource.attributes.add(key="service.name")
    name.value.string_value = "envoy"
    scope = group.scope_spans.add()
    for number in numbers:
        added = scope.spans.add(
            trace_id=bytes.fromhex(TRACE),
            span_id=number.to_bytes(8, "big"),
            name=f"span {number}",
            kind=2,
            start_time_unix_nano=NOW,
            end_time_unix_nano=NOW + 5 * MS,
        )
        attribute = added.attributes.add(key="calls")
        attribute.value.int_value = number
    return request


def test_spans_form_trees_in_order_of_their_start() -> None:
    late, early = span(3, 1, start_ms=5), span(2, 1, start_ms=1)
    lonely = span(9, 77, start_ms=8)  # its parent never arrived
    (root, other) = forest([late, lonely, span(1), early])
    assert [child.span.span_id[-1] for child in root.children] == ["2", "3"]
    assert other.span is lonely
    assert root.as_dict(NOW)["children"][1]["offset_ms"] == 5.0


def test_a_span_that_is_its_own_parent_is_a_root() -> None:
    (root,) = forest([span(1, 1)])
    assert root.children == ()


def test_otlp_becomes_spans_and_what_has_no_proper_id_is_left_out() -> None:
    request = request_of(7)
    spans = request.resource_spans[0].scope_spans[0].spans
    spans[0].status.code = 2  # ERROR
    spans[0].status.message = "no\0room"
    spans.add(trace_id=b"short", span_id=b"12345678")
    spans.add(trace_id=b"x" * 16, span_id=b"12345678", end_time_unix_nano=1 << 63)
    (found,) = spans_of(request)
    assert (found.service, found.kind, found.span_id) == ("envoy", "server", f"{7:016x}")
    assert found.error == "noroom"
    assert found.attributes == {"calls": 7}
    assert found.duration_ms == 5.0


@pytest.fixture(scope="session")
async def store_url(postgres: PostgresEngine) -> str:
    databases = Databases(postgres.url(), {"traces": "secret"}, is_embedded=True)
    await databases.provision()
    return databases.url("traces")


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[SpanStore]:
    async with opened_store(store_url) as store:
        await store.create_tables()
        await store._pool.execute("TRUNCATE spans")
        yield store


async def test_a_batch_is_kept_once_and_found_by_the_beginning_of_its_id(store: SpanStore) -> None:
    batch = [span(1, attributes={"a": 1}), span(2, 1, error="failed")]
    await store.add(batch)
    await store.add(batch)
    found = await store.trace(TRACE[:8])
    assert sorted(found, key=lambda each: each.span_id) == batch
    await store.add([span(1, trace=TRACE[:30] + "00")])
    assert await store.trace(TRACE[:8]) == []  # two traces begin so
    assert len(await store.trace(TRACE)) == 2


async def test_search_by_service_name_and_duration(store: SpanStore) -> None:
    slow = "cd" * 16
    await store.add([span(1), span(2, 1, service="registry", name="GetModel")])
    await store.add([span(1, trace=slow, start_ms=50, end_ns=NOW + 550 * MS)])

    async def ids(**by: object) -> list[str]:
        asked = {"service": None, "name": None, "min_ms": 0.0, "limit": 10} | by
        return [each.trace_id for each in await store.search(**asked)]

    assert await ids() == [slow, TRACE]
    assert await ids(limit=1) == [slow]
    assert await ids(service="registry") == [TRACE]
    await store.add([span(3, 1, service="volary-monitor")])
    assert await ids(service="monitor") == [TRACE]
    assert await ids(name="getm") == [TRACE]
    assert await ids(name="%") == []
    assert await ids(min_ms=100.0) == [slow]
    (summary,) = await store.search(service="registry", name=None, min_ms=0, limit=10)
    assert (summary.service, summary.name, summary.spans) == ("gateway", "span 1", 3)


async def test_old_and_supernumerary_spans_go(store: SpanStore) -> None:
    await store.add([span(number) for number in range(1, 11)])
    await store.prune(max_age_s=3600, max_spans=4)
    left = {int(each.span_id, 16) for each in await store.trace(TRACE)}
    assert left == {7, 8, 9, 10}
    await store._pool.execute("UPDATE spans SET received_at = now() - interval '2 hours'")
    await store.prune(max_age_s=3600, max_spans=4)
    assert await store.trace(TRACE) == []


async def test_a_full_queue_drops_and_says_so(store: SpanStore) -> None:
    handler = TraceHandler(SpanQueue(store, 2))
    reply = await handler.Export(request_of(1, 2, 3), None)
    assert reply.partial_success.rejected_spans == 1


async def test_a_batch_that_met_the_database_shutting_down_is_written_once_it_is_back(
    store: SpanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, refused = store.add, []

    async def shutting_down_once(spans: list[Span]) -> None:
        if not refused:
            refused.append(len(spans))
            raise asyncpg.AdminShutdownError("terminating connection")
        await add(spans)

    monkeypatch.setattr(store, "add", shutting_down_once)
    queue = SpanQueue(store, 10)
    writing = asyncio.create_task(queue.write())
    for span in spans_of(request_of(1)):
        assert queue.offer(span)
    async with asyncio.timeout(20):
        while not await store.trace(TRACE):
            assert not writing.done()
            await asyncio.sleep(0.05)
    writing.cancel()
    assert refused == [1]


async def test_the_receiver_takes_spans_over_grpc_and_outlives_its_database(
    store_url: str, store: SpanStore, tmp_path: Path
) -> None:
    port = free_port()
    command = Command(
        (sys.executable, "-m", "volary_cli.traces"),
        tmp_path,
        {
            "VOLARY_TRACES_PORT": str(port),
            "VOLARY_TRACES_STORE_URL": store_url,
            "PATH": os.environ["PATH"],
        },
    )
    child = await spawn(command, tmp_path / "log")
    try:
        is_ready = HealthProbe(f"127.0.0.1:{port}")
        async with asyncio.timeout(60):
            while not await is_ready():
                assert child.exit_code is None, (tmp_path / "log").read_text()
                await asyncio.sleep(0.05)
        await _export(port, request_of(1))
        await store._pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'volary-traces' AND pid <> pg_backend_pid()"
        )
        await _export(port, request_of(2))
        async with asyncio.timeout(20):
            while len(await store.trace(TRACE)) < 2:
                await asyncio.sleep(0.05)
    finally:
        assert await child.stop() == 0


async def _export(port: int, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        export = channel.unary_unary(
            EXPORT,
            request_serializer=ExportTraceServiceRequest.SerializeToString,
            response_deserializer=ExportTraceServiceResponse.FromString,
        )
        return await export(request, timeout=10)
