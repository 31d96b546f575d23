"""How soon input that nobody can answer is refused, by gRPC and as JSON over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Callable, Iterator, Mapping

import grpc
import numpy as np
from inference import grpc_service_pb2 as pb

from bench.inference import graphs
from bench.inference.measuring import Times
from bench.inference.served import INFER, Served, body
from bench.load.generator import BenchError
from bench.report import Goal, Line, say

LIMIT_MS = 100.0
HUGE = 66 << 20  # above what the listener takes at all
LARGE = 63 << 20  # below it
LEAST_DIMENSION, GREATEST_DIMENSION, RANK = -1, 1 << 31, 1_000
REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
PATH = "/v2/models/small/infer"
BEGINNING = 1_024
Change = Callable[[pb.ModelInferRequest], object]


def _cases() -> Iterator[tuple[str, bytes]]:
    row = np.linspace(-1, 1, graphs.SMALL[0], dtype=np.float32)
    good = body("small", row)
    yield "bytes that are no message", b"\xff" * 64
    yield "a message cut short", good[:-5]
    infinite = np.full_like(row, np.nan).tobytes()
    changes: dict[str, Change] = {
        "a negative dimension": lambda r: r.inputs[0].shape.append(LEAST_DIMENSION),
        "a product that overflows": lambda r: r.inputs[0].shape.extend([GREATEST_DIMENSION] * 4),
        "a thousand dimensions": lambda r: r.inputs[0].shape.extend([1] * RANK),
        "too few bytes": lambda r: r.raw_input_contents.__setitem__(0, b"1234"),
        "another datatype": lambda r: setattr(r.inputs[0], "datatype", "INT64"),
        "NaN": lambda r: r.raw_input_contents.__setitem__(0, infinite),
        "no input": lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents")),
        "an unknown model": lambda r: setattr(r, "model_name", "nobody"),
        "an unknown version": lambda r: setattr(r, "model_version", "99"),
        "an unknown parameter": lambda r: r.parameters["nothing"].CopyFrom(_text("x")),
    }
    for name, change in changes.items():
        request = pb.ModelInferRequest.FromString(good)
        change(request)
        yield name, request.SerializeToString()


def _text(value: str) -> pb.InferParameter:
    return pb.InferParameter(string_param=value)


class Asking:
    """Calls of one after another, each timed from its first byte to its status."""

    def __init__(self, server: Served, channel: grpc.aio.Channel) -> None:
        self._ask = channel.unary_unary(INFER)
        self._metadata = tuple(server.target("small").headers.items())

    async def times_ms(
        self, name: str, data: bytes, *expected: grpc.StatusCode, times: int
    ) -> list[float]:
        """Send bytes so many times; raise BenchError for another status than is expected."""
        found: list[float] = []
        for _ in range(times):
            began_s = time.perf_counter()
            code = await self._ask(data, metadata=self._metadata, timeout=10).code()
            found.append((time.perf_counter() - began_s) * 1e3)
            if code not in expected:
                raise BenchError(f"{name} is answered with {code.name}")
        return found


async def by_grpc(server: Served, line: str, huge_line: str, times: Times) -> list[Line]:
    """Send each case some times; return the worst answer's time, that of a huge message apart.

    A huge message is refused for the size that it announces: what the time is spent on is the
    caller's copy of it. Beside it stands one of nearly its size that has to come as a whole.
    """
    target = server.target("small")
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(target.address, options) as channel:
        asking = Asking(server, channel)
        body, few = target.body.read_bytes(), times.refusals
        good = await asking.times_ms("a good call", body, grpc.StatusCode.OK, times=few)
        worst = {
            name: max(await asking.times_ms(name, data, *REFUSALS, times=few))
            for name, data in _cases()
        }
        huge = await asking.times_ms("a huge message", bytes(HUGE), *REFUSALS, times=times.huge)
        large = await asking.times_ms("a large message", bytes(LARGE), *REFUSALS, times=times.huge)
    sending = float(np.median(large))
    limit = Goal("<=", LIMIT_MS, "ours")
    return [
        _line(line, worst, float(np.median(good))),
        Line(huge_line, max(huge), "ms", limit, sending, "63 MiB that are no message"),
    ]


_TENSOR = '{"name": "features", "datatype": "FP32", "shape": [1, 32], "data": [%s]}'
BODIES = {
    "text that is no JSON": b'{"inputs": [',
    "JSON that is no object": b"[1, 2, 3]",
    "NaN in JSON": ('{"inputs": [' + _TENSOR % ", ".join(["NaN"] * 32) + "]}").encode(),
    "JSON nested without end": b'{"inputs":' + b"[" * 100_000,
    "too few elements": ('{"inputs": [' + _TENSOR % "1, 2" + "]}").encode(),
    "bytes that are no text": b"\xff\xfe\x00" * 20,
}


async def by_http(server: Served, line: str, times: Times) -> Line:
    """Post each body some times; return the worst answer's time."""
    return await asyncio.to_thread(_posted, server, line, times.refusals)


def _posted(server: Served, line: str, count: int) -> Line:
    headers = server.target("small").headers
    good = _TENSOR % ", ".join(["0.5"] * graphs.SMALL[0])
    times = [_post(server, f'{{"inputs": [{good}]}}'.encode(), headers) for _ in range(count)]
    if any(status != http.HTTPStatus.OK for status, _ in times):
        raise BenchError(f"a good request over HTTP is answered with {times[0][0]}")
    worst: dict[str, float] = {}
    for name, data in BODIES.items():
        for _ in range(count):
            status, took_ms = _post(server, data, headers)
            if not http.HTTPStatus.BAD_REQUEST <= status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise BenchError(f"{name} is answered with {status}")
            worst[name] = max(worst.get(name, 0.0), took_ms)
    announced = [_announce(server, HUGE, headers) for _ in range(count)]
    if any(status != http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE for status, _ in announced):
        raise BenchError(f"a huge body is answered with {announced[0][0]}")
    worst["a huge body"] = max(took_ms for _, took_ms in announced)
    return _line(line, worst, float(np.median([took_ms for _, took_ms in times])))


def _announce(server: Served, size: int, headers: Mapping[str, str]) -> tuple[int, float]:
    """Say how long a body is, send the beginning of it, and read the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    began_s = time.perf_counter()
    try:
        connection.putrequest("POST", PATH)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            connection.putheader(name, value)
        connection.endheaders(b"{" * BEGINNING)
        status = connection.getresponse().status
        return status, (time.perf_counter() - began_s) * 1e3
    finally:
        connection.close()


def _post(server: Served, data: bytes, headers: Mapping[str, str]) -> tuple[int, float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    began_s = time.perf_counter()
    try:
        connection.request("POST", PATH, data, dict(headers))
        status = connection.getresponse().status
        return status, (time.perf_counter() - began_s) * 1e3
    finally:
        connection.close()


def _line(name: str, worst: dict[str, float], good_ms: float) -> Line:
    shown = sorted(worst.items(), key=lambda each: -each[1])
    say(f"{name}: " + ", ".join(f"{what} {took_ms:.1f} ms" for what, took_ms in shown))
    return Line(name, shown[0][1], "ms", Goal("<=", LIMIT_MS, "ours"), good_ms, "a good call")
