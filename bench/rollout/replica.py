"""A small V2 server in a process of its own, so that it can be killed: `python -m ... PORT`.

With `--leave` before the port it ends with its standard input, once its calls are answered.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc

VERSION = "volary-version"
LEAVE_S = 30.0


# the stubs want every method; this one has the one that is measured
_Servicer: Any = v2_grpc.GRPCInferenceServiceServicer


class Replica(_Servicer):
    """Answer at once with the version that was asked for."""

    async def ModelInfer(
        self, request: v2.ModelInferRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> v2.ModelInferResponse:
        metadata = dict(context.invocation_metadata() or ())
        version = str(metadata.get(VERSION, ""))
        context.set_trailing_metadata(((VERSION, version), ("volary-tier", "model")))
        return v2.ModelInferResponse(model_name=request.model_name, model_version=version)


async def serve(port: int, *, is_leaving: bool = False) -> None:
    """Take calls until the process ends, or until its standard input does."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    v2_grpc.add_GRPCInferenceServiceServicer_to_server(Replica(), server)
    # the stubs of grpc_health do not know its asyncio half
    checks = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    if is_leaving:
        await asyncio.to_thread(sys.stdin.read)
        await server.stop(LEAVE_S)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[-1]), is_leaving="--leave" in sys.argv))
