"""Envoy's spans, as they reach an OTLP receiver."""

from __future__ import annotations

import grpc
import pytest
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.otlp.v1 import trace_pb2
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Traffic, Weight
from volary_gateway.xds.mesh import Mesh, snapshot_of

from tests.unit.gateway.rig import Backend, free_port, rig, until

MODEL = ModelName("default", "flights")
SERVER, CLIENT = trace_pb2.SPAN_KIND_SERVER, trace_pb2.SPAN_KIND_CLIENT


@pytest.fixture
async def receiver():
    spans: list[trace_pb2.Span] = []

    async def export(request, context):
        for of_process in request.resource_spans:
            for scope in of_process.scope_spans:
                spans.extend(scope.spans)
        return trace_pb2.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=trace_pb2.ExportTraceServiceRequest.FromString,
        response_serializer=trace_pb2.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server, port = grpc.aio.server(), free_port()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield spans, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_call_is_one_trace_from_client_through_envoy_to_the_replica(receiver, tmp_path):
    spans, address = receiver
    backend = Backend("one").start()
    await backend.server.start()
    async with rig(tmp_path, otlp=address) as running:
        traffic = Traffic(MODEL, 1, (Weight(1, 10_000),), production=1)
        at = (backend.address,)
        snapshot = snapshot_of(Mesh(running.edge, (traffic,), {VersionName.of(MODEL, 1): at}, at))
        running.plane.publish(snapshot)
        assert await running.plane.converge(snapshot, 20), running.plane.rejections
        async with running.channel() as channel:
            trace_id, span_id = "ab" * 16, "cd" * 8
            metadata = (
                ("x-api-key", running.token()),
                ("traceparent", f"00-{trace_id}-{span_id}-01"),
            )
            stub = v2_grpc.GRPCInferenceServiceStub(channel)
            request = v2.ModelInferRequest(model_name="flights")
            await stub.ModelInfer(request, metadata=metadata, timeout=5)
        await until(lambda: len(spans) >= 2, 20)
    await backend.server.stop(None)
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    [inbound] = [span for span in spans if span.kind == SERVER]
    [outbound] = [span for span in spans if span.kind == CLIENT]
    assert inbound.parent_span_id.hex() == span_id
    assert outbound.parent_span_id == inbound.span_id
    [seen] = backend.calls()
    assert seen["traceparent"] == f"00-{trace_id}-{outbound.span_id.hex()}-01"
