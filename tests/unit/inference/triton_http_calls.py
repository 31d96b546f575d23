"""Calls a V2 server with a stock `tritonclient.http`; run in a virtual environment of its own.

With an operator's key it asks for what a replica answers and the edge does not. Headers are
copied for each call: tritonclient writes into them.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import tritonclient.http as client
import tritonclient.http.aio as aio_client
from tritonclient.utils import InferenceServerException

ROWS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
EXPECTED = 1 / (1 + np.exp(-ROWS.sum(axis=1, keepdims=True)))
CODINGS = (None, "gzip", "deflate")


def features(module, *, is_binary: bool = True):
    tensor = module.InferInput("features", ROWS.shape, "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=is_binary)
    return [tensor]


def check(result) -> bytes:
    found = result.as_numpy("probability")
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    assert result.get_response()["parameters"]["volary_tier"] == "model"
    return np.asarray(found, np.float32).tobytes()


def refusal(call) -> tuple[str, str]:
    try:
        call()
    except InferenceServerException as error:
        return error.status(), error.message()
    return "200", ""


def informing(server, headers: dict[str, str]) -> None:
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("m", headers=dict(headers))
    assert server.is_model_ready("m", model_version="1", headers=dict(headers))
    assert not server.is_model_ready("none", headers=dict(headers))
    metadata = server.get_server_metadata(headers=dict(headers))
    assert metadata["name"] == "volary"
    assert "binary_tensor_data" in metadata["extensions"]
    model = server.get_model_metadata("m", headers=dict(headers))
    assert model["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 3]}]
    assert server.get_model_config("m", headers=dict(headers))["max_batch_size"] > 1
    index = server.get_model_repository_index(headers=dict(headers))
    assert [(row["name"], row["version"], row["state"]) for row in index] == [("m", "1", "READY")]


def inferring(server, headers: dict[str, str]) -> None:
    seen = set()
    for is_binary in (True, False):
        for asked_binary in (True, False):
            outputs = [client.InferRequestedOutput("probability", binary_data=asked_binary)]
            inputs = features(client, is_binary=is_binary)
            seen.add(check(server.infer("m", inputs, outputs=outputs, headers=dict(headers))))
    for coding in CODINGS:
        result = server.infer(
            "m", features(client), model_version="1", request_id="7", headers=dict(headers),
            request_compression_algorithm=coding, response_compression_algorithm=coding,
            timeout=5_000_000,
        )  # fmt: skip
        assert result.get_response()["id"] == "7"
        seen.add(check(result))
    seen.add(check(server.async_infer("m", features(client), headers=dict(headers)).get_result()))
    assert len(seen) == 1, "one input has one output, however it travels"
    stats = server.get_inference_statistics("m", headers=dict(headers))["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] >= 8
    assert stats["inference_stats"]["cache_hit"]["count"] == 0


def refusing(server, headers: dict[str, str]) -> None:
    status, text = refusal(lambda: server.infer("none", features(client), headers=dict(headers)))
    assert (status, bool(text)) == ("404", True), (status, text)
    status, text = refusal(lambda: server.infer("m", features(client)))
    assert (status, bool(text)) == ("401", True), (status, text)
    wrong = client.InferInput("features", [1, 2], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
    status, text = refusal(lambda: server.infer("m", [wrong], headers=dict(headers)))
    assert (status, bool(text)) == ("400", True), (status, text)


def administrating(server, keys: dict[str, str]) -> None:
    headers = {"x-api-key": keys["operator"]}
    assert server.get_trace_settings(headers=dict(headers))["trace_rate"] == "1"
    assert server.get_log_settings(headers=dict(headers))["log_file"] == ""
    changed = server.update_log_settings({"log_verbose_level": 1}, headers=dict(headers))
    assert changed["log_verbose_level"] == 1
    server.update_log_settings({"log_verbose_level": 0, "log_info": True}, headers=dict(headers))
    for call in (
        lambda: server.get_system_shared_memory_status(headers=dict(headers)),
        lambda: server.register_system_shared_memory("r", "/k", 4, headers=dict(headers)),
        lambda: server.get_cuda_shared_memory_status(headers=dict(headers)),
    ):
        assert refusal(call)[0] == "501", refusal(call)
    server.unload_model("m", headers=dict(headers))
    assert not server.is_model_ready("m", headers=dict(headers))
    server.load_model("m", headers=dict(headers))
    check(server.infer("m", features(client), headers={"x-api-key": keys["predictor"]}))


async def awaiting(address: str, headers: dict[str, str]) -> None:
    async with aio_client.InferenceServerClient(address) as server:
        assert await server.is_server_live()
        assert await server.is_model_ready("m", headers=dict(headers))
        calls = [server.infer("m", features(aio_client), headers=dict(headers)) for _ in range(8)]
        for result in await asyncio.gather(*calls):
            check(result)


if __name__ == "__main__":
    where, predictor, operator = sys.argv[1:]
    with_key = {"x-api-key": predictor}
    with client.InferenceServerClient(where) as used:
        informing(used, with_key)
        inferring(used, with_key)
        refusing(used, with_key)
        if operator:
            administrating(used, {"predictor": predictor, "operator": operator})
    asyncio.run(awaiting(where, with_key))
    sys.stdout.write("all calls answered\n")
