"""What a real Envoy does with a replica that fails, and with more calls than a breaker takes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary_gateway.domain.evidence import NO_STATUS, Attempt
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Traffic, Weight
from volary_gateway.handlers.access_logs import attempt_of
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.edge import INFERENCE_CLUSTER
from volary_gateway.xds.mesh import Mesh, snapshot_of
from volary_gateway.xds.snapshot import Snapshot, resource

from tests.unit.gateway.rig import Backend, Rig, backends_of, rig, until

MODEL = ModelName("default", "flights")
REFUSALS = 3  # one after the other eject a replica
SELDOM_S = 30.0  # between two checks of a replica that is healthy and gets no calls
VERSION = VersionName.of(MODEL, 1)


class Slow(Backend):
    """A backend whose calls wait for the gate."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.gate = asyncio.Event()
        self.gate.set()

    async def ModelInfer(self, request, context):
        reply = await super().ModelInfer(request, context)
        await self.gate.wait()
        return reply


class Replicas:
    """Two replicas of one version behind Envoy."""

    def __init__(self, running: Rig, backends: list[Slow]) -> None:
        self.rig, self.backends = running, backends
        self._stub = v2_grpc.GRPCInferenceServiceStub(running.channel())
        self._key = (("x-api-key", running.token()),)

    def snapshot(self) -> Snapshot:
        traffic = Traffic(MODEL, 1, (Weight(1, 10_000),), production=1)
        at = tuple(backend.address for backend in self.backends)
        return snapshot_of(Mesh(self.rig.edge, (traffic,), {VERSION: at}, at))

    async def serve(self, snapshot: Snapshot) -> None:
        self.rig.plane.publish(snapshot)
        assert await self.rig.plane.converge(snapshot, 10), self.rig.plane.rejections
        await until(lambda: self.stat("membership_healthy") == 2)

    def stat(self, name: str) -> int:
        stats = self.rig.envoy.stats(name)
        return stats.get(f"cluster.{VERSION.cluster}.{name}", 0)

    async def infer(self) -> v2.ModelInferResponse:
        request = v2.ModelInferRequest(model_name=MODEL.model)
        return await self._stub.ModelInfer(request, metadata=self._key, timeout=5)

    async def live(self, calls: int) -> None:
        """Make calls that belong to no model; a failed one raises."""
        for _ in range(calls):
            assert (await self._stub.ServerLive(v2.ServerLiveRequest(), timeout=5)).live

    def unmet(self) -> list[Attempt]:
        """Return the attempts, as evidence has them, that met no replica."""
        attempts = map(attempt_of, self.rig.logs.attempts())
        return [each for each in attempts if each is not None and not each.has_met]

    def healthy_of_any(self) -> int:
        """Return how many replicas Envoy finds healthy for such calls."""
        name = f"cluster.{INFERENCE_CLUSTER}.membership_healthy"
        return self.rig.envoy.stats("membership_healthy").get(name, 0)

    async def code(self) -> grpc.StatusCode:
        request = v2.ModelInferRequest(model_name=MODEL.model)
        return await self._stub.ModelInfer(request, metadata=self._key, timeout=5).code()

    async def answering(self, calls: int) -> set[str]:
        """Return who answered so many calls; a failed one raises."""
        return set(backends_of([await self.infer() for _ in range(calls)]))


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replicas]:
    backends = [Slow("good"), Slow("bad")]
    for backend in backends:
        await backend.start().server.start()
    async with rig(tmp_path_factory.mktemp("ejection")) as started:
        yield Replicas(started, backends)
    for backend in backends:
        await backend.server.stop(None)


@pytest.fixture
async def replicas(running: Replicas) -> Replicas:
    await running.serve(running.snapshot())
    return running


async def test_dead_replica_is_ejected_and_comes_back_and_no_call_fails(replicas: Replicas):
    _, bad = replicas.backends
    assert await replicas.answering(20) == {"good", "bad"}
    await bad.server.stop(None)
    is_ejected = False
    for _ in range(200):
        assert await replicas.answering(1) == {"good"}
        if is_ejected := replicas.stat("outlier_detection.ejections_active") == 1:
            break
    assert is_ejected
    # by attempts that no process took: they say nothing of the version
    await until(lambda: len(replicas.unmet()) >= REFUSALS)
    assert {(each.code, each.is_first) for each in replicas.unmet()} == {(NO_STATUS, False)}
    await bad.start().server.start()
    await until(lambda: replicas.stat("outlier_detection.ejections_active") == 0)
    await until(lambda: replicas.stat("membership_healthy") == 2)
    assert await replicas.answering(20) == {"good", "bad"}


async def test_dead_replica_costs_no_call_that_belongs_to_no_model(replicas: Replicas):
    _, bad = replicas.backends
    await until(lambda: replicas.healthy_of_any() == 2)
    await replicas.live(20)
    assert all(backend.calls("ServerLive") for backend in replicas.backends)
    await bad.server.stop(None)
    try:
        await replicas.live(100)
    finally:
        await bad.start().server.start()
        await until(lambda: replicas.stat("membership_healthy") == 2, 30)
        await until(lambda: replicas.stat("outlier_detection.ejections_active") == 0, 30)


async def test_replica_that_answers_later_than_it_is_known_is_found_soon(tmp_path: Path):
    """Before any call: a cluster without calls is checked seldom once its host is healthy."""
    late = Slow("late")
    async with rig(tmp_path) as running:
        replicas = Replicas(running, [late])
        running.plane.publish(replicas.snapshot())
        assert await running.plane.converge(replicas.snapshot(), 30), running.plane.rejections
        assert replicas.healthy_of_any() == 0
        await late.start().server.start()
        await until(lambda: replicas.healthy_of_any() == 1, SELDOM_S / 2)
        await replicas.live(1)
        await late.server.stop(None)


async def test_replies_that_fail_eject_nobody_so_that_the_judge_sees_them(replicas: Replicas):
    _, bad = replicas.backends
    bad.fail = grpc.StatusCode.INTERNAL
    try:
        codes = Counter([await replicas.code() for _ in range(100)])
    finally:
        bad.fail = None
    assert codes == {grpc.StatusCode.OK: 50, grpc.StatusCode.INTERNAL: 50}
    assert replicas.stat("outlier_detection.ejections_active") == 0


def with_breaker(snapshot: Snapshot, requests: int) -> Snapshot:
    """Return a snapshot whose version takes so many calls at a time."""
    items = {kind: [*named.values()] for kind, named in snapshot.resources.items()}
    at = snapshot.resources[xds.ENDPOINTS][VERSION.cluster]
    cluster = cluster_pb2.Cluster.FromString(
        snapshot.resources[xds.CLUSTER][VERSION.cluster].body.value
    )
    cluster.circuit_breakers.thresholds[0].max_requests.value = requests
    narrow = resource(VERSION.cluster, cluster)
    again = xds.Resource(at.name, xds.version_of(at.body, salt=narrow.version), at.body)
    for kind, fresh in ((xds.CLUSTER, narrow), (xds.ENDPOINTS, again)):
        items[kind] = [item for item in items[kind] if item.name != fresh.name] + [fresh]
    return Snapshot.of(items)


async def test_full_breaker_refuses_at_once_and_takes_calls_again(replicas: Replicas):
    await replicas.serve(with_breaker(replicas.snapshot(), requests=2))
    for backend in replicas.backends:
        backend.gate.clear()
        backend.seen.clear()
    held = [asyncio.create_task(replicas.infer()) for _ in range(2)]
    try:
        await until(lambda: sum(len(b.seen) for b in replicas.backends) == 2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await replicas.infer()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sum(len(b.seen) for b in replicas.backends) == 2
    finally:
        for backend in replicas.backends:
            backend.gate.set()
    assert len([await each for each in held]) == 2
    assert await replicas.answering(10) <= {"good", "bad"}
