"""Calls a V2 server with a stock `tritonclient`; run in a virtual environment of its own.

Everything that its gRPC client can ask is asked once, with a predictor's key and, where that is
needed, an operator's.

tritonclient registers the same `inference` symbols as the mesh's own code, so it cannot be
imported beside it.
"""

from __future__ import annotations

import asyncio
import queue
import sys

import numpy as np
import tritonclient.grpc as client
import tritonclient.grpc.aio as aio_client
from tritonclient.utils import InferenceServerException, shared_memory

ROWS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
EXPECTED = 1 / (1 + np.exp(-ROWS.sum(axis=1, keepdims=True)))


def features(module):
    tensor = module.InferInput("features", ROWS.shape, "FP32")
    tensor.set_data_from_numpy(ROWS)
    return [tensor]


def check(result) -> None:
    np.testing.assert_allclose(result.as_numpy("probability"), EXPECTED, atol=1e-6)
    assert result.get_response().parameters["volary_tier"].string_param == "model"


class Answers:
    """Puts what tritonclient calls back with into a queue."""

    def __init__(self, answers: queue.Queue) -> None:
        self._answers = answers

    def __call__(self, result, error) -> None:
        self._answers.put((result, error))


def check_answer(answers: queue.Queue) -> None:
    result, error = answers.get(timeout=10)
    assert error is None, error
    check(result)


def blocking(address: str, headers: dict[str, str]) -> None:
    with client.InferenceServerClient(address) as server:
        assert server.is_server_live()
        assert server.is_server_ready()
        assert server.is_model_ready("m", headers=headers)
        assert server.get_server_metadata(headers=headers).name == "volary"
        assert server.get_model_metadata("m", headers=headers).inputs[0].datatype == "FP32"
        assert server.get_model_config("m", headers=headers).config.max_batch_size > 1
        assert server.get_model_repository_index(headers=headers).models
        outputs = [client.InferRequestedOutput("probability")]
        check(server.infer("m", features(client), outputs=outputs, headers=headers))
        check(
            server.infer("m", features(client), model_version="1", request_id="7", headers=headers)
        )
        for priority in (0, 1, 3):
            found = server.infer(
                "m", features(client), headers=headers, priority=priority, timeout=20_000_000
            )
            check(found)
        assert refusal(
            lambda: server.infer("m", features(client), headers=headers, priority=4)
        ) == ("StatusCode.INVALID_ARGUMENT", True)
        answers: queue.Queue = queue.Queue()
        server.async_infer("m", features(client), Answers(answers), headers=headers)
        check_answer(answers)
        assert server.get_inference_statistics("m", headers=headers).model_stats
        status = refusal(lambda: server.infer("none", features(client), headers=headers))[0]
        assert status == "StatusCode.NOT_FOUND", status


def refusal(call) -> tuple[str, bool]:
    """Return the status of a call, and whether something is said with it."""
    try:
        call()
    except InferenceServerException as error:
        return error.status(), bool(error.message())
    return "OK", False


def administrating(address: str, predictor: dict[str, str], operator: dict[str, str]) -> None:
    with client.InferenceServerClient(address) as server:
        settings = server.get_trace_settings(headers=operator).settings
        assert list(settings["trace_rate"].value) == ["1"]
        server.update_trace_settings(settings={"trace_rate": "1"}, headers=operator)
        changed = server.update_log_settings({"log_verbose_level": 1}, headers=operator)
        assert changed.settings["log_verbose_level"].uint32_param == 1
        server.update_log_settings({"log_verbose_level": 0, "log_info": True}, headers=operator)
        assert server.get_log_settings(headers=operator).settings["log_info"].bool_param
        server.unload_model("m", headers=operator)
        assert not server.is_model_ready("m", headers=predictor)
        server.load_model("m", headers=operator)
        check(server.infer("m", features(client), headers=predictor))
        status = refusal(lambda: server.get_cuda_shared_memory_status(headers=predictor))[0]
        assert status == "StatusCode.UNIMPLEMENTED", status


def sharing(address: str, key: str, headers: dict[str, str]) -> None:
    """Hand tensors over in memory of this machine, both ways."""
    output = EXPECTED.astype(np.float32)
    size = ROWS.nbytes + output.nbytes
    region = shared_memory.create_shared_memory_region("region", key, size)
    try:
        shared_memory.set_shared_memory_region(region, [ROWS])
        with client.InferenceServerClient(address) as server:
            server.register_system_shared_memory("region", key, size, headers=headers)
            status = server.get_system_shared_memory_status(headers=headers)
            assert status.regions["region"].byte_size == size
            taken = client.InferInput("features", ROWS.shape, "FP32")
            taken.set_shared_memory("region", ROWS.nbytes)
            given = client.InferRequestedOutput("probability")
            given.set_shared_memory("region", output.nbytes, offset=ROWS.nbytes)
            server.infer("m", [taken], outputs=[given], headers=headers)
            found = shared_memory.get_contents_as_numpy(
                region, np.float32, output.shape, offset=ROWS.nbytes
            )
            np.testing.assert_allclose(found, output, atol=1e-6)
            del found
            server.unregister_system_shared_memory("region", headers=headers)
            assert not server.get_system_shared_memory_status(headers=headers).regions
    finally:
        shared_memory.destroy_shared_memory_region(region)


def streaming(address: str, headers: dict[str, str]) -> None:
    answers: queue.Queue = queue.Queue()
    with client.InferenceServerClient(address) as server:
        server.start_stream(Answers(answers), headers=headers)
        for _ in range(3):
            server.async_stream_infer("m", features(client))
        for _ in range(3):
            check_answer(answers)
        server.async_stream_infer("m", features(client), enable_empty_final_response=True)
        result, error = answers.get(timeout=10)
        assert error is None, error
        assert result.get_response().parameters["triton_final_response"].bool_param
        server.stop_stream()


async def awaiting(address: str, headers: dict[str, str]) -> None:
    async with aio_client.InferenceServerClient(address) as server:
        assert await server.is_server_live()
        assert await server.is_model_ready("m", headers=headers)
        calls = [server.infer("m", features(aio_client), headers=headers) for _ in range(8)]
        for result in await asyncio.gather(*calls):
            check(result)
        seen = 0
        async for result, error in server.stream_infer(asked(3), headers=headers):
            assert error is None, error
            check(result)
            seen += 1
        assert seen == 3


async def asked(count: int):
    for _ in range(count):
        yield {"model_name": "m", "inputs": features(aio_client)}


if __name__ == "__main__":
    where, *keys, segment = sys.argv[1:]
    with_key, with_operators = ({"x-api-key": key} for key in keys)
    blocking(where, with_key)
    streaming(where, with_key)
    asyncio.run(awaiting(where, with_key))
    sharing(where, segment, with_key)
    administrating(where, with_key, with_operators)
    sys.stdout.write("all calls answered\n")
