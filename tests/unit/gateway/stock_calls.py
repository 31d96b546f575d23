"""Calls Envoy with a stock `tritonclient` that knows an address and an API key, nothing else."""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import Callable

import grpc
import numpy as np
import tritonclient.grpc as client
import tritonclient.grpc.aio as aio_client
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

ROWS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
EXPECTED = 1 / (1 + np.exp(-ROWS.sum(axis=1, keepdims=True)))


def features(module):
    tensor = module.InferInput("features", ROWS.shape, "FP32")
    tensor.set_data_from_numpy(ROWS)
    return [tensor]


def check(result) -> None:
    np.testing.assert_allclose(result.as_numpy("probability"), EXPECTED, atol=1e-6)


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except InferenceServerException as error:
        return error.status()
    return "OK"


def blocking(address: str, headers: dict[str, str]) -> None:
    with client.InferenceServerClient(address) as server:
        assert server.is_server_live()  # these two need no credential
        assert server.is_server_ready()
        assert server.is_model_ready("m", headers=headers)
        assert server.get_model_metadata("m", headers=headers).inputs[0].datatype == "FP32"
        assert server.get_model_config("m", headers=headers).config.max_batch_size > 1
        assert server.get_model_repository_index(headers=headers).models[0].name == "m"
        check(server.infer("m", features(client), headers=headers))
        assert server.get_inference_statistics("m", headers=headers).model_stats[0].name == "m"
        for status, name in (("NOT_FOUND", "none"), ("INVALID_ARGUMENT", "")):
            asked = refusal(lambda name=name: server.infer(name, features(client), headers=headers))
            assert asked == f"StatusCode.{status}", (name, asked)
        without = refusal(lambda: server.infer("m", features(client)))
        assert without == "StatusCode.UNAUTHENTICATED", without


def refusals_say_why(address: str, headers: dict[str, str]) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, reason in (("none", b"MODEL_NOT_FOUND"), ("", b"MODEL_NAME_EMPTY")):
            request = service_pb2.ModelInferRequest(model_name=name)
            try:
                stub.ModelInfer(request, metadata=tuple(headers.items()), timeout=10)
            except grpc.RpcError as error:
                details = dict(error.trailing_metadata())["grpc-status-details-bin"]
            else:
                details = b""
            assert b"google.rpc.ErrorInfo" in details, details
            assert reason in details, details


def streaming(address: str, headers: dict[str, str]) -> None:
    answers: queue.Queue = queue.Queue()
    with client.InferenceServerClient(address) as server:
        server.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        for _ in range(3):
            server.async_stream_infer("m", features(client))
        for _ in range(3):
            result, error = answers.get(timeout=20)
            assert error is None, error
            check(result)
        server.stop_stream()


async def awaiting(address: str, headers: dict[str, str]) -> None:
    async with aio_client.InferenceServerClient(address) as server:
        assert await server.is_server_live()
        assert await server.is_server_ready()
        assert await server.is_model_ready("m", headers=headers)
        assert (await server.get_model_metadata("m", headers=headers)).name == "m"
        assert (await server.get_model_config("m", headers=headers)).config.name == "m"
        assert (await server.get_model_repository_index(headers=headers)).models
        calls = [server.infer("m", features(aio_client), headers=headers) for _ in range(8)]
        for result in await asyncio.gather(*calls):
            check(result)
        assert (await server.get_inference_statistics("m", headers=headers)).model_stats

        async def requests():
            for _ in range(3):
                yield {"model_name": "m", "inputs": features(aio_client)}

        async for result, error in server.stream_infer(requests(), headers=headers):
            assert error is None, error
            check(result)


if __name__ == "__main__":
    where, key = sys.argv[1:]
    with_key = {"x-api-key": key}
    blocking(where, with_key)
    refusals_say_why(where, with_key)
    streaming(where, with_key)
    asyncio.run(awaiting(where, with_key))
    sys.stdout.write("all calls answered\n")
