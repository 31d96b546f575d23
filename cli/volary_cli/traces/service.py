"""The receiver as a service of the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from volary.otlp.v1 import trace_pb2
from volary_kit.service import Resources, Service, Servicer, run

from volary_cli.traces.receiver import SpanQueue, TraceHandler
from volary_cli.traces.settings import TracesSettings
from volary_cli.traces.store import opened_store

TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


@asynccontextmanager
async def build(kit: Resources[TracesSettings]) -> AsyncIterator[Service]:
    """Open the store and take spans."""
    settings = kit.settings
    async with opened_store(settings.store_url) as store:
        await store.create_tables()
        queue = SpanQueue(store, settings.queue_spans)

        async def prune() -> None:
            while True:
                await store.prune(max_age_s=settings.max_age_s, max_spans=settings.max_spans)
                await asyncio.sleep(settings.prune_every_s)

        yield Service(
            servicers=[Servicer(_register, TraceHandler(queue), TRACE_SERVICE)],
            readiness=[store.ping],
            background=[queue.write, prune],
        )


def _register(handler: TraceHandler, server: Any) -> None:
    """Register by name: the RPC is OpenTelemetry's, the messages are our own build of them."""
    export = grpc.unary_unary_rpc_method_handler(
        handler.Export,
        request_deserializer=trace_pb2.ExportTraceServiceRequest.FromString,
        response_serializer=trace_pb2.ExportTraceServiceResponse.SerializeToString,
    )
    server.add_registered_method_handlers(TRACE_SERVICE, {"Export": export})


def main() -> None:
    """Run the receiver."""
    run("traces", TracesSettings, build)
