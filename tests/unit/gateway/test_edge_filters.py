"""Rate limits, JSON, gRPC-Web, the answer of last resort: each through a real Envoy."""

from __future__ import annotations

import asyncio
import json
import struct
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary_gateway.domain.limits import Limit, LimitKind, LimitName
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Shadow, Traffic, Weight
from volary_gateway.xds.mesh import Mesh, snapshot_of

from tests.unit.gateway.rig import Backend, Rig, rig, until

MODEL = ModelName("default", "flights")
V1 = VersionName.of(MODEL, 1)
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Edge:
    """One model on two replicas, one host of last resort, and clients."""

    def __init__(self, running: Rig, replicas: list[Backend], last: Backend) -> None:
        self.rig, self.replicas, self.last = running, replicas, last
        self.channel = running.channel()
        self.stub = v2_grpc.GRPCInferenceServiceStub(self.channel)
        self.generation = 0

    async def serve(self, **more) -> None:
        """Push a state; whatever it does not name is as in an empty mesh."""
        self.generation += 1
        shadow = more.pop("shadow", None)
        ready = {V1: tuple(each.address for each in self.replicas)}
        ready[VersionName.of(MODEL, 2)] = (self.last.address,)
        traffic = Traffic(
            MODEL, self.generation, (Weight(1, 10_000),), shadow=shadow, production=1, rollout="r1"
        )
        edge = replace(self.rig.edge, fallback=self.last.address)
        mesh = Mesh(edge, (traffic,), ready, ready[V1], **more)
        snapshot = snapshot_of(mesh)
        self.rig.plane.publish(snapshot)
        assert await self.rig.plane.converge(snapshot, 10), self.rig.plane.rejections
        for backend in (*self.replicas, self.last):
            backend.seen.clear()

    async def infer(self, **more) -> v2.ModelInferResponse:
        key = (("x-api-key", self.rig.token(**more)),)
        request = v2.ModelInferRequest(model_name="flights")
        return await self.stub.ModelInfer(request, metadata=key, timeout=5)

    async def codes(self, calls: int, **more) -> Counter:
        found: Counter = Counter()
        for _ in range(calls):
            try:
                await self.infer(**more)
            except grpc.aio.AioRpcError as error:
                found[error.code()] += 1
            else:
                found[grpc.StatusCode.OK] += 1
        return found

    async def post(self, path: str, body: bytes, content: str) -> tuple[int, bytes, dict]:
        headers = {"x-api-key": self.rig.token(), "content-type": content}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.rig.port}{path}", body, headers, method="POST"
        )

        def send():
            try:
                with urllib.request.urlopen(request, timeout=5) as reply:
                    return reply.status, reply.read(), dict(reply.headers)
            except urllib.error.HTTPError as error:
                return error.code, error.read(), dict(error.headers)

        return await asyncio.to_thread(send)


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    backends = [Backend(name).start() for name in ("one", "two", "last")]
    for backend in backends:
        await backend.server.start()
    async with rig(tmp_path_factory.mktemp("filters")) as started:
        edge = Edge(started, backends[:2], backends[2])
        await edge.serve()
        yield edge
        await edge.channel.close()
    for backend in backends:
        await backend.server.stop(None)


@pytest.fixture
async def edge(running: Edge) -> Edge:
    await running.serve()
    return running


def limit(kind: LimitKind, subject: str, calls: int) -> Limit:
    # one call a second comes back: slow enough not to be seen within a test
    return Limit(LimitName("default", kind, subject), 1, calls, 0)


async def test_model_lets_through_what_its_bucket_holds(edge: Edge):
    await edge.serve(limits=(limit(LimitKind.MODEL, "flights", 8),))
    found = await edge.codes(30)
    refused = found[grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert found[grpc.StatusCode.OK] + refused == 30
    assert refused >= 15  # 8 at once, and 1 a second for as long as the 30 calls take
    assert sum(len(each.calls()) for each in edge.replicas) == found[grpc.StatusCode.OK]
    await edge.serve()
    assert await edge.codes(20) == {grpc.StatusCode.OK: 20}


async def test_refusal_by_a_limit_says_why(edge: Edge):
    await edge.serve(limits=(limit(LimitKind.MODEL, "flights", 1),))
    await edge.codes(3)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        for _ in range(5):
            await edge.infer()
    details = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert b"RATE_LIMITED" in details
    assert b"volary.dev" in details


@pytest.mark.parametrize("subject", ["-", "tester"])
async def test_client_has_a_bucket_of_its_own(edge: Edge, subject: str):
    await edge.serve(limits=(limit(LimitKind.PRINCIPAL, subject, 5),))
    first = await edge.codes(20)
    assert first[grpc.StatusCode.RESOURCE_EXHAUSTED] >= 10
    other = await edge.codes(4, principal="somebody-else")
    assert other == {grpc.StatusCode.OK: 4}


async def test_json_is_transcoded(edge: Edge):
    body = json.dumps({"model_name": "flights", "id": "7"}).encode()
    status, reply, _ = await edge.post(INFER, body, "application/json")
    assert status == 200, reply
    assert json.loads(reply)["id"] == "7"
    assert sum(len(each.calls()) for each in edge.replicas) == 1


async def test_error_in_json_carries_its_reason(edge: Edge):
    body = json.dumps({"model_name": "none"}).encode()
    status, reply, _ = await edge.post(INFER, body, "application/json")
    assert status == 404
    found = json.loads(reply)
    assert found["code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert found["details"][0]["reason"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("body", [b"", b"{", b'{"model_name": 7}', b'{"no_such_field": 1}', b"[]"])
async def test_json_that_is_no_call_is_a_bad_request(edge: Edge, body: bytes):
    status, _, _ = await edge.post(INFER, body, "application/json")
    assert status == 400
    assert sum(len(each.calls()) for each in edge.replicas) == 0


async def test_json_to_an_unknown_method_is_not_found(edge: Edge):
    status, _, _ = await edge.post("/no.such.Service/Method", b"{}", "application/json")
    assert status == 404


async def test_grpc_web_is_answered_in_its_own_framing(edge: Edge):
    message = v2.ModelInferRequest(model_name="flights", id="7").SerializeToString()
    frame = b"\0" + struct.pack(">I", len(message)) + message
    status, reply, headers = await edge.post(INFER, frame, "application/grpc-web+proto")
    assert status == 200
    assert headers["content-type"].startswith("application/grpc-web")
    size = struct.unpack(">I", reply[1:5])[0]
    assert v2.ModelInferResponse.FromString(reply[5 : 5 + size]).id == "7"
    trailers = reply[5 + size :]
    assert trailers[0] == 0x80
    assert b"grpc-status:0" in trailers


async def test_refusal_comes_in_the_framing_of_grpc_web(edge: Edge):
    message = v2.ModelInferRequest(model_name="none").SerializeToString()
    frame = b"\0" + struct.pack(">I", len(message)) + message
    status, reply, headers = await edge.post(INFER, frame, "application/grpc-web+proto")
    told = reply.decode(errors="replace") + "".join(f"{k}:{v}" for k, v in headers.items())
    assert status == 200
    assert f"grpc-status:{grpc.StatusCode.NOT_FOUND.value[0]}" in told.replace(" ", "")
    assert sum(len(each.calls()) for each in edge.replicas) == 0


async def test_share_of_the_calls_is_mirrored(edge: Edge):
    await edge.serve(shadow=Shadow(2, 2_500))
    await edge.codes(400)
    copies = lambda: len(edge.last.calls())  # noqa: E731
    # 100 +- 5.4 standard deviations: wrong once in 10^7 runs
    await until(lambda: 53 <= copies() <= 147)
    assert {seen["volary-shadow"] for seen in edge.last.calls()} == {"true"}


async def test_replicas_get_every_call_while_one_of_them_lives(edge: Edge):
    await edge.serve(fallbacks=frozenset({MODEL}))
    lost = edge.replicas[1]
    await lost.server.stop(None)
    try:
        assert await edge.codes(60) == {grpc.StatusCode.OK: 60}
        assert edge.last.calls() == []
    finally:
        await _revive(lost)


async def test_model_without_a_living_replica_is_answered_by_its_fallback(edge: Edge):
    await edge.serve(fallbacks=frozenset({MODEL}))
    assert await edge.codes(5) == {grpc.StatusCode.OK: 5}
    assert edge.last.calls() == []
    for replica in edge.replicas:
        await replica.server.stop(None)
    try:
        # at once, before any health check: the attempts after the crash find their way
        assert await edge.codes(40) == {grpc.StatusCode.OK: 40}
        assert len(edge.last.calls()) == 40
        assert {seen["volary-version"] for seen in edge.last.calls()} == {"1"}
    finally:
        for replica in edge.replicas:
            await _revive(replica)


async def test_model_that_declares_none_is_unavailable(edge: Edge):
    for replica in edge.replicas:
        await replica.server.stop(None)
    try:
        assert await edge.codes(5) == {grpc.StatusCode.UNAVAILABLE: 5}
        assert edge.last.calls() == []
    finally:
        for replica in edge.replicas:
            await _revive(replica)


def load_of(calls_per_s: float, in_flight: float) -> str:
    return f"TEXT application_utilization={in_flight},rps_fractional={calls_per_s}"


async def test_replica_that_reports_more_load_gets_less(edge: Edge):
    calm, busy = edge.replicas

    async def calls(number: int) -> Counter:
        for replica in edge.replicas:
            replica.seen.clear()
        await edge.codes(number)
        return Counter({replica.name: len(replica.calls()) for replica in edge.replicas})

    await eventually(lambda: calls(100), lambda found: min(found.values()) >= 45)
    # the same calls a second, and four times as many of them at a time: a quarter of the weight
    calm.load, busy.load = load_of(10, 0.1), load_of(10, 0.4)
    try:
        await eventually(lambda: calls(100), lambda found: 15 <= found[busy.name] <= 25)
        # it recovers, and gets its half again
        busy.load = calm.load
        await eventually(lambda: calls(100), lambda found: found[busy.name] >= 45)
    finally:
        calm.load = busy.load = ""


async def test_report_of_load_is_for_no_caller(edge: Edge):
    for replica in edge.replicas:
        replica.load = load_of(10, 0.1)
    try:
        key = (("x-api-key", edge.rig.token()),)
        request = v2.ModelInferRequest(model_name="flights")
        call = edge.stub.ModelInfer(request, metadata=key, timeout=5)
        await call
        trailing = dict(await call.trailing_metadata())
    finally:
        for replica in edge.replicas:
            replica.load = ""
    assert trailing["volary-tier"] == "model"
    assert "endpoint-load-metrics" not in trailing


async def eventually(look, is_true, timeout_s: float = 60) -> None:
    """Look until what is seen holds; fail loudly with the last that was seen."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not is_true(found := await look()):
        assert asyncio.get_running_loop().time() < end, found


async def _revive(backend: Backend) -> None:
    backend.start()
    await backend.server.start()
