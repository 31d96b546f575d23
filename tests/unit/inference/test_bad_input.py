"""What no caller should send, on each engine, beside callers who send what they should."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.duration_pb2 import Duration
from inference import grpc_service_pb2 as v2
from volary.inference.v1 import control_service_pb2
from volary_kit import errors
from volary_kit.testing import eventually

from . import graphs
from .peers import Peers
from .replica import Replica, raw_output, raw_request, typed_request

INFER = "/inference.GRPCInferenceService/ModelInfer"
ROW = [1.0, 0.0, 0.0]
MATES = 4
TOO_LARGE = (64 << 20) + 1  # one more than the contract's row of ModelInfer allows
Refused = tuple[str, type[errors.VolaryError]]


@pytest.fixture
async def serving(replica: Replica, peers: Peers) -> Replica:
    """A replica with one model, and one whose version 2 can be made slow."""
    peers.gateway.want(
        peers.registry.add(1, graphs.sigmoid_sum(), production=True),
        peers.registry.add(2, graphs.sigmoid_sum(bias=1.0)),
    )
    replica.start("--failpoints")
    await replica.ready()
    return replica


def shaped(*sizes: int) -> v2.ModelInferRequest:
    request = raw_request([ROW])
    request.inputs[0].shape[:] = sizes
    return request


def named(name: str, where: str = "") -> v2.ModelInferRequest:
    request = raw_request([ROW])
    parameters = request.inputs[0].parameters if where else request.parameters
    parameters[name].int64_param = 1
    return request


def prioritized(priority: int) -> v2.ModelInferRequest:
    request = raw_request([ROW])
    request.parameters["priority"].int64_param = priority
    return request


def requests() -> Iterator[tuple[Refused, v2.ModelInferRequest]]:
    """Bad requests with the refusal that each gets."""
    invalid, unknown = errors.InvalidArgument, errors.NotFound
    shapes = [(-1, 3), (1 << 31, 3), (1 << 40, 1 << 40), (0, 3), (1,) * 1_000, (1 << 62, 4), ()]
    for sizes in shapes:
        yield ("SHAPE_INVALID", invalid), shaped(*sizes)
    yield ("SHAPE_MISMATCH", invalid), raw_request([[1.0, 2.0]])
    for data in (b"", b"\0" * 11, b"\0" * 13):
        wrong = raw_request([ROW])
        wrong.raw_input_contents[0] = data
        yield ("RAW_SIZE_MISMATCH", invalid), wrong
    for datatype, reason in (("FP99", "DATATYPE_UNKNOWN"), ("INT32", "DATATYPE_MISMATCH")):
        other = raw_request([ROW])
        other.inputs[0].datatype = datatype
        yield (reason, invalid), other
    yield ("NOT_A_NUMBER", invalid), raw_request([[math.nan, 0.0, 0.0]])
    yield ("NOT_A_NUMBER", invalid), typed_request([[math.nan, 0.0, 0.0]])
    yield ("MODEL_NOT_FOUND", unknown), raw_request([ROW], model="none")
    for number in ("9", "-1", "x", "9" * 40):
        yield ("VERSION_NOT_FOUND", unknown), raw_request([ROW], version=number)
    for priority in (-1, 4, 1 << 40):
        yield ("PRIORITY_INVALID", invalid), prioritized(priority)
    yield ("PARAMETER_UNKNOWN", invalid), named("sequence_id")
    yield ("PARAMETER_UNKNOWN", invalid), named("binary_data", "input")
    yield ("PARAMETER_UNKNOWN", invalid), named("shared_memory_region", "input")


def texts() -> Iterator[bytes]:
    """Bytes that are no message."""
    good = raw_request([ROW]).SerializeToString()
    yield b"\xff" * 16
    yield b"\x0a\xff\x01abc"  # longer than it is
    yield good[:-1]
    yield b"\x0b" * 5_000 + b"\x0c" * 5_000  # groups in groups
    yield b"\x0a\x02\xc3\x28"  # no UTF-8


@asynccontextmanager
async def good_callers(serving: Replica) -> AsyncIterator[list[int]]:
    """Callers whose every call has to be answered rightly; they share batches with the bad."""
    answered, is_over, stub = [0], asyncio.Event(), serving.v2()

    async def call(share: float) -> None:
        while not is_over.is_set():
            reply = await stub.ModelInfer(raw_request([[share, 0.0, 0.0]]))
            assert raw_output(reply) == pytest.approx([1 / (1 + math.exp(-share))], abs=1e-6)
            answered[0] += 1

    callers = [asyncio.create_task(call(number / MATES)) for number in range(MATES)]
    try:
        yield answered
    finally:
        is_over.set()
        await asyncio.gather(*callers)


async def test_each_is_refused_by_name_and_harms_nobody(serving: Replica) -> None:
    async with good_callers(serving) as answered, serving.channel() as channel:
        stub = serving.v2()
        for (reason, kind), request in requests():
            with pytest.raises(kind) as caught:
                await stub.ModelInfer(request)
            assert caught.value.reason == reason, request
        infer = channel.unary_unary(INFER)
        for data in texts():
            with pytest.raises(errors.InvalidArgument) as malformed:
                await infer(data)
            assert malformed.value.reason == "MALFORMED_REQUEST", data[:16]
        with pytest.raises(errors.ResourceExhausted) as too_large:
            await infer(bytes(TOO_LARGE), timeout=30)
        assert too_large.value.reason == "REQUEST_TOO_LARGE"
        assert answered[0] > 0
    assert (await serving.v2().ModelInfer(raw_request([ROW]))).model_version == "1"


async def test_callers_who_go_away_at_any_moment_leave_nothing_behind(serving: Replica) -> None:
    fault = control_service_pb2.Failpoint(
        id="slow", project="default", model="m", version=2, slow_share=1.0
    )
    fault.delay.CopyFrom(Duration(seconds=60))
    armed = control_service_pb2.ArmFailpointRequest(failpoint=fault)
    await serving.control().ArmFailpoint(armed)
    stub = serving.v2()
    async with good_callers(serving) as answered:
        running = [stub.ModelInfer(raw_request([ROW], version="2")) for _ in range(8)]
        quick = [stub.ModelInfer(raw_request([ROW])) for _ in range(64)]
        for call in quick[::2]:
            call.cancel()  # some before they were sent
        before = answered[0]

        async def went_on() -> bool:
            return answered[0] >= before + 8 * MATES

        await eventually(went_on, what="the good callers' answers")
        for call in (*running, *quick):
            call.cancel()  # in the queue, in a run, or answered long ago
        for call in running:
            with pytest.raises((asyncio.CancelledError, errors.Cancelled)):
                await call
    [metadata] = (
        await stub.ModelStatistics(v2.ModelStatisticsRequest(name="m", version="1"))
    ).model_stats
    assert metadata.inference_stats.success.count >= answered[0]
    assert await serving.stop() == 0
