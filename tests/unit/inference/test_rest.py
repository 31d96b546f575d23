"""V2 over HTTP at a running replica: a stock client, the same bits as gRPC, bad input."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from inference import grpc_service_pb2 as v2
from onnx import TensorProto
from volary_cli.launcher.engines import free_port

from tests.unit.stock_client import client_python

from . import graphs
from .peers import Peers
from .replica import Replica, raw_request

CALLS = Path(__file__).with_name("triton_http_calls.py")
CALLS_S = 60
SOON_S = 0.1
MAX_BODY = 256 << 10
MAX_JSON = 64 << 10
LENGTH = "Inference-Header-Content-Length"
Answer = tuple[int, dict[str, Any], bytes]


class Rest:
    """An HTTP client of a replica's REST port."""

    def __init__(self, session: aiohttp.ClientSession, replica: Replica, port: int) -> None:
        self._session = session
        self._key = replica.keys.api_key()
        self._port = port
        self._at = f"http://127.0.0.1:{port}"

    async def ask(
        self,
        verb: str,
        path: str,
        body: bytes = b"",
        *,
        json_bytes: int | None = None,
        **headers: str,
    ) -> Answer:
        """Return status, JSON and the bytes behind it; every reply is JSON."""
        sent = {"x-api-key": self._key} | {k.replace("_", "-"): v for k, v in headers.items()}
        if json_bytes is not None:
            sent[LENGTH] = str(json_bytes)
        async with self._session.request(
            verb, self._at + path, data=body, headers=sent
        ) as response:
            data = await response.read()
            length = int(response.headers.get(LENGTH, len(data)))
            return response.status, json.loads(data[:length]), data[length:]

    async def status_of_announced(self, size: int) -> bytes:
        """Return the status of a body of which the headers come, and nothing after them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n"
        try:
            writer.write(head.encode())
            async with asyncio.timeout(60):
                return (await reader.readline()).split()[1]
        finally:
            writer.close()

    async def infer(
        self, document: dict[str, Any], tail: bytes = b"", *, path: str = "", **headers: str
    ) -> Answer:
        text = json.dumps(document).encode()
        size = len(text) if tail else None
        return await self.ask(
            "POST", f"/v2/models/m/{path}infer", text + tail, json_bytes=size, **headers
        )


@pytest.fixture
async def rest(replica: Replica, peers: Peers) -> AsyncIterator[Rest]:
    """The REST port of a replica that is about to be ready; its model is set by the test."""
    port = free_port()
    replica.start(
        VOLARY_INFERENCE_REST_PORT=str(port),
        VOLARY_INFERENCE_REST_MAX_BODY_BYTES=str(MAX_BODY),
        VOLARY_INFERENCE_REST_MAX_JSON_BYTES=str(MAX_JSON),
        VOLARY_INFERENCE_SHARED_MEMORY_PREFIX="volary_rest",
    )
    async with aiohttp.ClientSession() as session:
        yield Rest(session, replica, port)


async def test_a_stock_http_client_works_blocking_compressed_and_async(
    replica: Replica, peers: Peers
) -> None:
    python = await asyncio.to_thread(client_python)
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    port = free_port()
    replica.start(VOLARY_INFERENCE_REST_PORT=str(port))
    await replica.ready()
    keys = replica.keys
    done = await asyncio.to_thread(
        subprocess.run,
        [python, CALLS, f"127.0.0.1:{port}", keys.api_key(), keys.api_key("operator", "predictor")],
        capture_output=True,
        text=True,
        timeout=CALLS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout == "all calls answered\n"
    assert await replica.stop() == 0


CASES = {
    "FP32": (TensorProto.FLOAT, np.array([[0.1, -0.0, 3.4e38, 1e-45]], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([[1 / 3, 5e-324]], np.float64)),
    "FP16": (TensorProto.FLOAT16, np.array([[0.1, 65504.0]], np.float16)),
    "INT64": (TensorProto.INT64, np.array([[-(1 << 63), (1 << 63) - 1]], np.int64)),
    "UINT8": (TensorProto.UINT8, np.array([[0, 255]], np.uint8)),
    "BOOL": (TensorProto.BOOL, np.array([[True, False]])),
}


async def test_rest_and_grpc_agree_bit_for_bit(replica: Replica, peers: Peers, rest: Rest) -> None:
    """One version a datatype, so that one replica shows them all."""
    versions = dict(enumerate(CASES, 1))
    peers.gateway.want(
        *(
            peers.registry.add(number, graphs.identity(kind, [None, array.shape[1]]))
            for number, (kind, array) in enumerate(CASES.values(), 1)
        )
    )
    await replica.ready()
    for number, datatype in versions.items():
        await check_agreement(replica, rest, str(number), datatype)


async def check_agreement(replica: Replica, rest: Rest, version: str, datatype: str) -> None:
    array = CASES[datatype][1]
    raw, shape, path = array.tobytes(), list(array.shape), f"versions/{version}/"
    asked = v2.ModelInferRequest(model_name="m", model_version=version, raw_input_contents=[raw])
    asked.inputs.add(name="x", datatype=datatype, shape=shape)
    expected = (await replica.v2().ModelInfer(asked)).raw_output_contents[0]
    tensor = {"name": "x", "datatype": datatype, "shape": shape}
    sized = tensor | {"parameters": {"binary_data_size": len(raw)}}
    binary = {"parameters": {"binary_data_output": True}}
    assert (await rest.infer({"inputs": [sized]} | binary, raw, path=path))[2] == expected
    listed = tensor | {"data": array.tolist()}
    status, document, tail = await rest.infer({"inputs": [listed]} | binary, path=path)
    if datatype == "FP16":
        assert (status, document["reason"]) == (400, "BINARY_ONLY")
        return
    assert (status, tail) == (200, expected)
    status, document, _ = await rest.infer({"inputs": [listed]}, path=path)
    found = np.array(document["outputs"][0]["data"], array.dtype)
    assert (status, found.tobytes()) == (200, expected)


async def test_bytes_go_as_text_and_as_bytes(replica: Replica, peers: Peers, rest: Rest) -> None:
    peers.gateway.want(
        peers.registry.add(1, graphs.identity(TensorProto.STRING, [None, 1]), production=True)
    )
    await replica.ready()
    tensor = {"name": "x", "datatype": "BYTES", "shape": [2, 1], "data": [["grün"], [""]]}
    status, document, _ = await rest.infer({"id": "a", "inputs": [tensor]})
    assert (status, document["id"], document["model_version"]) == (200, "a", "1")
    assert document["outputs"][0]["data"] == ["grün", ""]


async def test_bad_input_gets_the_right_status_at_once(
    replica: Replica, peers: Peers, rest: Rest
) -> None:
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    await replica.ready()
    good = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 0, 0]}
    assert (await rest.infer({"inputs": [good]}))[0] == 200
    infer = "/v2/models/m/infer"
    gzipped, small = {"content_encoding": "gzip"}, json.dumps({"inputs": [good]}).encode()
    large = json.dumps({"inputs": [good], "id": "x" * MAX_JSON}).encode()
    cases: list[tuple[str, str, bytes, dict[str, str], int, str]] = [
        ("POST", infer, b"{", {}, 400, "JSON_INVALID"),
        ("POST", infer, b"[" * 60_000, {}, 400, "JSON_INVALID"),
        ("POST", infer, large, {}, 413, "JSON_TOO_LARGE"),
        ("POST", infer, bytes(MAX_BODY + 1), {}, 413, "BODY_TOO_LARGE"),
        ("POST", infer, gzip.compress(bytes(64 << 20)), gzipped, 413, "BODY_TOO_LARGE"),
        ("POST", infer, b"no gzip", gzipped, 400, "BODY_INVALID"),
        ("POST", infer, b"{}", {"content_encoding": "compress"}, 501, "ENCODING_UNSUPPORTED"),
        ("POST", infer, b"{}", {LENGTH: "9"}, 400, "HEADER_LENGTH_INVALID"),
        ("POST", infer, b"{}", {LENGTH: "-1"}, 400, "HEADER_LENGTH_INVALID"),
        ("POST", infer, b"{}", {LENGTH: "0"}, 501, "RAW_REQUEST_UNSUPPORTED"),
        ("POST", infer, b"{}", {}, 400, ""),
        ("POST", infer, b"{}", {"x_api_key": "forged"}, 401, ""),
        ("GET", infer, b"", {}, 405, "METHOD_UNKNOWN"),
        ("GET", "/v2/nothing", b"", {}, 404, "ROUTE_UNKNOWN"),
        ("GET", "/v2/models/none", b"", {}, 404, "MODEL_NOT_FOUND"),
        ("POST", "/v2/models/m/versions/9/infer", small, {}, 404, ""),
        ("POST", "/v2/repository/models/m/unload", b"{}", {}, 403, ""),
    ]  # fmt: skip
    for verb, path, body, headers, status, reason in cases:
        began_s = time.monotonic()
        found, document, _ = await rest.ask(verb, path, body, **headers)
        assert found == status, (path, body[:20], headers, document)
        assert document["error"]
        assert document["reason"] == reason or not reason, document
        assert time.monotonic() - began_s < 10 * SOON_S, (path, body[:20])
    asked = {"parameters": {"unheard_of": 1}, "inputs": [good]}
    status, document, _ = await rest.infer(asked)
    assert (status, document["reason"]) == (400, "PARAMETER_UNKNOWN")
    assert (await rest.infer({"inputs": [good]}, volary_version="9"))[0] == 200
    assert await rest.status_of_announced(MAX_BODY + 1) == b"413"


async def test_tensors_in_shared_memory_are_named_over_http_too(
    replica: Replica, peers: Peers, rest: Rest
) -> None:
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    await replica.ready()
    key = f"volary_rest_{uuid.uuid4().hex}"
    segment = Path("/dev/shm") / key
    segment.write_bytes(np.array([[1, 0, 0]], np.float32).tobytes() + bytes(4))
    at = "/v2/systemsharedmemory"
    place = json.dumps({"key": f"/{key}", "offset": 0, "byte_size": 16}).encode()
    try:
        assert (await rest.ask("POST", f"{at}/region/r/register", place))[:2] == (200, {})
        assert (await rest.ask("GET", f"{at}/status"))[1][0]["byte_size"] == 16
        shared = {"shared_memory_region": "r", "shared_memory_byte_size": 12}
        output = {
            "shared_memory_region": "r",
            "shared_memory_byte_size": 4,
            "shared_memory_offset": 12,
        }
        asked = {
            "inputs": [
                {"name": "features", "datatype": "FP32", "shape": [1, 3], "parameters": shared}
            ],
            "outputs": [{"name": "probability", "parameters": output}],
        }
        status, document, _ = await rest.infer(asked)
        assert status == 200, document
        assert "data" not in document["outputs"][0]
        reply = await replica.v2().ModelInfer(raw_request([[1.0, 0.0, 0.0]]))
        assert segment.read_bytes()[12:] == reply.raw_output_contents[0]
        status, document, _ = await rest.infer(asked, x_forwarded_for="10.0.0.9")
        assert (status, document["reason"]) == (403, "NOT_LOCAL")
        assert (await rest.ask("POST", f"{at}/unregister"))[0] == 200
    finally:
        segment.unlink()
