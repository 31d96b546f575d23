"""Calls a V2 server with a stock `tritonclient`; run in a virtual environment of its own.

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
from tritonclient.utils import InferenceServerException

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
        answers: queue.Queue = queue.Queue()
        server.async_infer("m", features(client), Answers(answers), headers=headers)
        check_answer(answers)
        assert server.get_inference_statistics("m", headers=headers).model_stats
        try:
            server.infer("none", features(client), headers=headers)
        except InferenceServerException as error:
            status = error.status()
        else:
            status = "OK"
        assert status == "StatusCode.NOT_FOUND", status


def streaming(address: str, headers: dict[str, str]) -> None:
    answers: queue.Queue = queue.Queue()
    with client.InferenceServerClient(address) as server:
        server.start_stream(Answers(answers), headers=headers)
        for _ in range(3):
            server.async_stream_infer("m", features(client))
        for _ in range(3):
            check_answer(answers)
        server.stop_stream()


async def awaiting(address: str, headers: dict[str, str]) -> None:
    async with aio_client.InferenceServerClient(address) as server:
        assert await server.is_server_live()
        assert await server.is_model_ready("m", headers=headers)
        calls = [server.infer("m", features(aio_client), headers=headers) for _ in range(8)]
        for result in await asyncio.gather(*calls):
            check(result)


if __name__ == "__main__":
    where, key = sys.argv[1:]
    with_key = {"x-api-key": key}
    blocking(where, with_key)
    streaming(where, with_key)
    asyncio.run(awaiting(where, with_key))
    sys.stdout.write("all calls answered\n")
