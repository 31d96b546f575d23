"""The native data plane alone: with no Python engine behind it, only its own answers come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import volary_contract
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from onnx import TensorProto
from volary.events.v1 import event_pb2
from volary.otlp.v1 import trace_pb2
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.domain.batching import BatchPolicy
from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.decisions import Calibration
from volary_inference.domain.predictions import VersionKey
from volary_inference.lifecycle.package import Description, Package
from volary_inference.native.module import DataPlane, load
from volary_inference.native.versions import NativeLoader, NativeTwin
from volary_kit.client import connect_aio
from volary_kit.clock import SystemClock
from volary_kit.errors import ResourceExhausted, Unavailable
from volary_kit.metrics import BUCKETS_S
from volary_kit.outgoing import Retry

from tests.native import require

from . import graphs
from .peers import Keys
from .replica import raw_output, raw_request, typed_request

CLOCK = SystemClock()
RESOURCE = trace_pb2.Resource(
    attributes=[trace_pb2.KeyValue(key="service.name", value=trace_pb2.AnyValue(string_value="x"))]
)
KINDS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CLIENT_ID, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    require("native")


class Alone:
    """A plane whose Python engine is not there."""

    def __init__(self, keys: Keys, *, events: int = 1_000) -> None:
        self.keys = keys
        self._module = load()
        self.plane: DataPlane = self._module.DataPlane(
            json.dumps(volary_contract.methods()),
            keys.jwks,
            None,
            Path("/nonexistent/python"),
            list(BUCKETS_S),
            1_000,
            events,
            1_000,
            RESOURCE.SerializeToString(),
        )
        self.port = self.plane.start("127.0.0.1", 0)
        self.twins: dict[str, NativeTwin] = {}
        self._rows: list[Any] = []
        self._channels: list[grpc.aio.Channel] = []

    def serve(
        self,
        model: str,
        graph: bytes,
        policy: BatchPolicy | None = None,
        calibration: Mapping[str, Any] | None = None,
        serving: Mapping[str, Any] | None = None,
    ) -> OnnxGraph:
        """Load a graph as version 3 of a model, in production; return its Python session."""
        loader = NativeLoader(self._module, policy or BatchPolicy(), CLOCK)
        description = Description(digest=f"sha256:{model}")
        package = Package(description, graph, serving=serving, calibration=calibration)
        session = loader.open(package)
        run_times = loader.warm(session, package)
        served = loader.serve(
            VersionKey("default", model, 3), session, run_times, loader.guard(session, package)
        )
        served.batcher.close()
        assert isinstance(served.twin, NativeTwin)
        self.twins[model] = served.twin
        self._rows.append(("default", model, 3, f"sha256:{model}", served.twin.native))
        self.plane.publish(self._rows, [(*row[:2], 3) for row in self._rows])
        return session

    def stub(self, credential: str | None = None) -> v2_grpc.GRPCInferenceServiceAsyncStub:
        token = credential or self.keys.api_key()
        channel = connect_aio(
            f"127.0.0.1:{self.port}", token, retry=Retry(attempts=1), timeout_s=10
        )
        self._channels.append(channel)
        return v2_grpc.GRPCInferenceServiceStub(channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        for twin in self.twins.values():
            assert twin.close(10)
        await asyncio.to_thread(self.plane.stop, 5.0)


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Alone]:
    alone = Alone(Keys(tmp_path))
    yield alone
    await alone.close()


async def test_what_is_valid_is_answered_without_python(alone: Alone) -> None:
    session = alone.serve("m", graphs.sigmoid_sum())
    rows = [[1.0, 0.25, -3.0], [0.5, 0.0, 1e-3]]
    expected = session.run({"features": np.array(rows, np.float32)})["probability"]
    call = alone.stub().ModelInfer(raw_request(rows))
    raw = await call
    assert raw.raw_output_contents[0] == expected.tobytes()
    assert raw.parameters["volary_confidence"].double_param == float(
        np.maximum(expected, 1 - expected).min()
    )
    assert dict(await call.trailing_metadata())["volary-tier"] == "model"
    typed = await alone.stub().ModelInfer(typed_request(rows))
    assert list(typed.outputs[0].contents.fp32_contents) == expected.ravel().tolist()
    for priority in (0, 1, 3):
        asked = raw_request(rows)
        asked.parameters["priority"].int64_param = priority
        assert (await alone.stub().ModelInfer(asked)).raw_output_contents == raw.raw_output_contents
    assert (await alone.stub().ModelReady(v2.ModelReadyRequest(name="m", version="3"))).ready
    assert (await alone.stub().ServerLive(v2.ServerLiveRequest())).live


async def test_a_calibrated_version_is_as_sure_as_in_python(alone: Alone) -> None:
    draw = np.random.default_rng(5)
    points = np.unique(draw.random(40))
    document = {
        "scores": points.tolist(),
        "probabilities": np.sort(draw.random(points.size)).tolist(),
    }
    session = alone.serve("m", graphs.sigmoid_sum(), calibration=document)
    calibration = Calibration.from_document(document)
    stub = alone.stub()
    for row in draw.normal(size=(50, 3)).astype(np.float32):
        reply = await stub.ModelInfer(raw_request([row.tolist()]))
        score = session.run({"features": row[None]})["probability"]
        assert reply.raw_output_contents[0] == score.tobytes()
        p = calibration.probability(score)
        assert reply.parameters["volary_confidence"].double_param == np.maximum(p, 1 - p).min()
        assert reply.parameters["volary_calibrated"].bool_param


@pytest.mark.parametrize("datatype", KINDS)
async def test_every_datatype_comes_back_bit_for_bit(alone: Alone, datatype: str) -> None:
    alone.serve("copy", graphs.identity(KINDS[datatype], [None, 2]))
    kind = DATATYPES[datatype]
    array = np.array([[0, 1], [1, 0]]).astype(kind.dtype)
    request = v2.ModelInferRequest(model_name="copy")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[2, 2])
    request.raw_input_contents.append(array.tobytes())
    raw = await alone.stub().ModelInfer(request)
    assert raw.raw_output_contents[0] == array.tobytes()
    if not kind.contents:
        return
    del request.raw_input_contents[:]
    getattr(tensor.contents, kind.contents).extend(array.ravel().tolist())
    typed = await alone.stub().ModelInfer(request)
    assert list(getattr(typed.outputs[0].contents, kind.contents)) == array.ravel().tolist()


def refused() -> list[v2.ModelInferRequest]:
    unknown, wide = raw_request([[1, 2, 3]], model="none"), raw_request([[1, 2]])
    parameter, nan = raw_request([[1, 2, 3]]), raw_request([[1, 2, float("nan")]])
    parameter.parameters["sequence_id"].int64_param = 1
    twice = typed_request([[1, 2, 3]])
    twice.raw_input_contents.append(b"")
    version = raw_request([[1, 2, 3]], version="4")
    return [unknown, wide, parameter, nan, twice, version]


async def test_every_refusal_is_left_to_python(alone: Alone) -> None:
    alone.serve("m", graphs.sigmoid_sum())
    alone.serve("root", graphs.square_root())
    stub = alone.stub()
    nan_out = v2.ModelInferRequest(model_name="root")
    nan_out.inputs.add(name="x", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(-1)
    for request in (*refused(), nan_out):
        with pytest.raises(Unavailable):
            await stub.ModelInfer(request)
    for credential in ("garbage", alone.keys.api_key("stranger"), alone.keys.api_key(project="p")):
        with pytest.raises(Unavailable):
            await alone.stub(credential).ModelInfer(raw_request([[1, 2, 3]]))
    assert (await stub.ModelInfer(raw_request([[1, 2, 3]]))).model_version == "3"


async def test_a_message_too_large_is_refused_by_its_prefix_alone(alone: Alone) -> None:
    limit = volary_contract.methods()[INFER]["max_request_bytes"]
    huge = v2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(limit)])
    with pytest.raises(ResourceExhausted) as caught:
        await alone.stub().ModelInfer(huge)
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert caught.value.metadata == {"bytes": str(huge.ByteSize()), "max_bytes": str(limit)}
    with pytest.raises(Unavailable):  # of nobody it is not even looked at
        await alone.stub("garbage").ModelInfer(huge)


async def test_callers_in_one_batch_get_their_own_rows(alone: Alone) -> None:
    alone.serve("copy", graphs.identity(TensorProto.INT64, [None, 2]))
    stub = alone.stub()

    async def ask(number: int) -> int:
        request = v2.ModelInferRequest(model_name="copy")
        rows = np.arange(number, number + 2 * (1 + number % 3), dtype=np.int64)
        request.inputs.add(name="x", datatype="INT64", shape=[rows.size // 2, 2])
        request.raw_input_contents.append(rows.tobytes())
        reply = await stub.ModelInfer(request)
        assert reply.raw_output_contents[0] == rows.tobytes()
        return reply.parameters["volary_batch_size"].int64_param

    sizes: list[int] = []
    for first in range(0, 2_000, 500):  # no more than 1,000 may be in flight
        sizes += await asyncio.gather(*(ask(first + number) for number in range(500)))
    assert max(sizes) > 3, "nobody shared a run"
    seen = alone.twins["copy"].snapshot()
    assert seen.success.count == 2_000
    assert seen.rows == sum(1 + number % 3 for number in range(2_000))


async def test_what_cannot_finish_in_time_is_refused_at_once_with_a_time(alone: Alone) -> None:
    alone.serve("m", graphs.sigmoid_sum())  # whose warming told how long a run takes
    request = raw_request([[0.0, 0.0, 0.0]])
    request.parameters["timeout"].int64_param = 1
    call = alone.stub().ModelInfer(request)
    with pytest.raises(ResourceExhausted) as caught:
        await call
    assert caught.value.reason == "OVERLOADED"
    assert caught.value.retry_after_s
    trailers = dict(await call.trailing_metadata() or ())
    assert (trailers["volary-version"], trailers["volary-tier"]) == ("3", "none")


async def test_a_call_leaves_its_event_its_spans_and_its_counts(alone: Alone) -> None:
    alone.serve("m", graphs.sigmoid_sum())
    request = raw_request([[1.0, 0.0, -1.0]])
    request.parameters["volary_subject"].string_param = "flight-1"
    request.parameters["volary_event_time"].int64_param = 1_700_000_000_000_001
    headers = (
        ("traceparent", PARENT),
        ("x-request-id", "key-7"),
        ("volary-route", "m/r/s/7"),
        ("x-envoy-attempt-count", "2"),
    )
    await alone.stub().ModelInfer(request, metadata=headers)
    count, bulk = await asyncio.to_thread(alone.plane.take_events, 10, 5.0)
    assert count == 1
    length, data = bulk.removeprefix(b"$").removesuffix(b"\r\n").split(b"\r\n", 1)
    assert int(length) == len(data)
    event = event_pb2.Event.FromString(data)
    prediction = event.prediction
    assert (event.id, prediction.request_key, prediction.route) == ("key-7.3.2", "key-7", "m/r/s/7")
    assert (prediction.tier, prediction.subject, prediction.code) == ("model", "flight-1", 0)
    assert event.event_time.nanos == 1_000
    assert list(prediction.features) == [1.0, 0.0, -1.0]
    assert list(prediction.outputs) == [0.5]
    assert prediction.trace_id == CLIENT_ID
    count, spans = alone.plane.take_spans(10, 5.0)
    export = trace_pb2.ExportTraceServiceRequest.FromString(spans)
    assert export.resource_spans[0].resource == RESOURCE
    found = {span.name: span for span in export.resource_spans[0].scope_spans[0].spans}
    server = found["inference.GRPCInferenceService/ModelInfer"]
    assert count == len(found) == 3
    assert {span.trace_id.hex() for span in found.values()} == {CLIENT_ID}
    assert server.parent_span_id.hex() == CLIENT_SPAN
    assert found["infer"].parent_span_id == server.span_id
    assert found["publish volary:predictions"].parent_span_id == server.span_id
    [(method, by_code, buckets, seconds)] = alone.plane.take_counts()
    assert (method, by_code) == ("/inference.GRPCInferenceService/ModelInfer", {"OK": 1})
    assert (sum(buckets), len(buckets)) == (1, len(BUCKETS_S) + 1)
    assert seconds > 0
    assert alone.plane.take_counts() == []


async def test_events_that_find_no_room_are_counted(tmp_path: Path) -> None:
    alone = Alone(Keys(tmp_path), events=2)
    alone.serve("m", graphs.sigmoid_sum())
    stub = alone.stub()
    for _ in range(5):
        await stub.ModelInfer(raw_request([[1, 2, 3]]))
    assert alone.plane.take_dropped()[0] == 3
    assert alone.plane.take_events(10, 0)[0] == 2
    await alone.close()


def test_a_version_with_text_is_left_to_python() -> None:
    module = load()
    with pytest.raises(ValueError, match="BYTES"):
        module.NativeVersion(b"", [("x", "BYTES", [-1])], [], None, 64, 0)


async def test_a_stop_answers_what_is_in_flight(alone: Alone) -> None:
    policy = BatchPolicy(max_delay_s=0.5)
    alone.serve("m", graphs.sigmoid_sum(), policy)
    calls = [alone.stub().ModelInfer(raw_request([[1, 2, 3]])) for _ in range(8)]
    waiting = asyncio.gather(*calls)
    while alone.plane.in_flight() < len(calls):
        await asyncio.sleep(0.001)
    await asyncio.to_thread(alone.plane.stop, 5.0)
    assert len({each.raw_output_contents[0] for each in await waiting}) == 1
    assert raw_output((await waiting)[0]) == pytest.approx([0.9975274], abs=1e-6)
