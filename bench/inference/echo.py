"""The reference: a grpc.aio server that answers ModelInfer with a reply made beforehand."""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop
from inference import grpc_service_pb2 as pb

METHOD = "ModelInfer"


async def serve(port: int) -> None:
    """Parse each request and serialize the same reply, without any model."""
    reply = pb.ModelInferResponse(model_name="echo", model_version="1")
    reply.outputs.add(name="logits", datatype="FP32", shape=[1, 2])
    reply.raw_output_contents.append(bytes(8))

    async def infer(_request: pb.ModelInferRequest, _context: object) -> pb.ModelInferResponse:
        return reply

    handler = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    server = grpc.aio.server()
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {METHOD: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        uvloop.run(serve(int(sys.argv[1])))
    else:
        asyncio.run(serve(int(sys.argv[1])))
