"""A real replica through its life: attach, load, refuse, swap, restart, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.gateway.v1 import replica_pb2
from volary.inference.v1 import control_service_pb2
from volary_kit import errors
from volary_kit.artifacts import digest_of
from volary_kit.testing import eventually

from . import graphs
from .peers import Peers
from .replica import Replica, raw_request

ROW = [[0.0, 0.0, 0.0]]


def is_in(peers: Peers, version: int, state: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return peers.gateway.state_of(version) == state

    return check


async def is_production(stub: v2_grpc.GRPCInferenceServiceAsyncStub, version: str) -> bool:
    return (await stub.ModelInfer(raw_request(ROW))).model_version == version


async def test_a_replica_loads_what_gateway_wants_and_says_so(
    replica: Replica, peers: Peers
) -> None:
    replica.start()
    await replica.ready()  # an empty set is nothing to wait for
    with pytest.raises(errors.NotFound):
        await replica.v2().ModelInfer(raw_request(ROW))
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    await eventually(is_in(peers, 1, "READY"), what="version 1 ready")
    await replica.v2().ModelInfer(raw_request(ROW))
    report = peers.gateway.reports[-1]
    assert report.replica_id == "inference-0"
    assert report.address == f"127.0.0.1:{replica.port}"
    assert report.revision == peers.gateway.desired.revision
    assert report.versions[0].backend == "onnxruntime-cpu"
    control = replica.control()
    with pytest.raises(errors.Unimplemented) as caught:
        await control.DisarmFailpoint(control_service_pb2.DisarmFailpointRequest())
    assert caught.value.reason == "FAILPOINTS_OFF"


async def test_a_replica_repeats_its_versions_only_to_a_gateway_that_needs_them(
    replica: Replica, peers: Peers
) -> None:
    gateway = peers.gateway
    replica.start()
    await replica.ready()
    gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    await eventually(is_in(peers, 1, "READY"), what="version 1 ready")
    assert not any(report.versions_unchanged for report in gateway.reports)
    gateway.desired.takes_unchanged = True
    gateway.changed.set()

    async def is_short() -> bool:
        last = gateway.reports[-1]
        return last.versions_unchanged and not last.versions

    await eventually(is_short, within_s=30, what="a short report")
    gateway.want(*gateway.desired.versions, peers.registry.add(2, graphs.sigmoid_sum(bias=2.0)))
    gateway.desired.takes_unchanged = True

    async def says_both() -> bool:
        ready = replica_pb2.VERSION_STATE_READY
        return any([row.state for row in each.versions] == [ready] * 2 for each in gateway.reports)

    await eventually(says_both, within_s=30, what="a whole report of both")
    await eventually(is_short, within_s=30, what="a short report again")


async def test_bad_artifacts_are_refused_and_the_others_serve(
    replica: Replica, peers: Peers
) -> None:
    registry = peers.registry
    tampered = registry.add(3, graphs.sigmoid_sum(bias=2.0))
    registry.artifacts[tampered.digest] = graphs.sigmoid_sum(bias=2.5)
    other = registry.add(4, graphs.sigmoid_sum(bias=4.0))
    other.digest = digest_of(graphs.sigmoid_sum(bias=5.0))
    golden = b'{"inputs": {"features": [[0, 0, 0]]}, "outputs": {"probability": [[0.9]]}}'
    peers.gateway.want(
        registry.add(1, graphs.sigmoid_sum(), production=True),
        registry.add(2, b"no onnx"),
        tampered,
        other,
        registry.add(5, graphs.sigmoid_sum(bias=5.0), golden=golden),
        registry.add(6, graphs.sigmoid_sum(width=2), golden=golden),
    )
    replica.start()
    await replica.ready()
    await replica.v2().ModelInfer(raw_request(ROW))
    listed = await replica.control().ListVersions(control_service_pb2.ListVersionsRequest())
    reasons = {row.version: row.error_reason for row in listed.versions}
    assert reasons == {
        1: "",
        2: "ARTIFACT_REFUSED",
        3: "DIGEST_MISMATCH",
        4: "DIGEST_MISMATCH",
        5: "GOLDEN_MISMATCH",
        6: "GOLDEN_ROWS_INVALID",
    }
    with pytest.raises(errors.Unavailable) as caught:
        await replica.v2().ModelInfer(raw_request(ROW, version="5"))
    assert caught.value.reason == "VERSION_NOT_READY"


async def test_versions_come_and_go_under_load_without_a_failed_call(
    replica: Replica, peers: Peers
) -> None:
    registry = peers.registry
    first = registry.add(1, graphs.sigmoid_sum(), production=True)
    peers.gateway.want(first)
    replica.start()
    await replica.ready()
    stub, answered, is_over = replica.v2(), 0, asyncio.Event()

    async def caller() -> None:
        nonlocal answered
        while not is_over.is_set():
            await stub.ModelInfer(raw_request(ROW))
            answered += 1

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    for number in range(2, 6):
        extra = registry.add(number, graphs.sigmoid_sum(bias=number))
        peers.gateway.want(first, extra)
        await eventually(is_in(peers, number, "READY"), what=f"version {number} ready")
    second = registry.add(6, graphs.sigmoid_sum(bias=6))
    peers.gateway.want(first, second)
    await eventually(is_in(peers, 6, "READY"), what="version 6 ready")
    first.production, second.production = False, True
    peers.gateway.want(first, second)
    await eventually(lambda: is_production(stub, "6"), what="version 6 in production")
    peers.gateway.want(second)
    await eventually(is_in(peers, 1, ""), what="version 1 gone")
    is_over.set()
    await asyncio.gather(*callers)  # raises what any call raised
    assert answered > 20
    assert (await stub.ModelInfer(raw_request(ROW))).model_version == "6"


async def test_a_swap_back_waits_for_nothing(replica: Replica, peers: Peers) -> None:
    gateway, registry = peers.gateway, peers.registry
    first = registry.add(1, graphs.sigmoid_sum(), production=True)
    second = registry.add(2, graphs.sigmoid_sum(bias=2))
    gateway.want(first, second)
    replica.start()
    await replica.ready()
    stub = replica.v2()
    loaded = {row.version: row.ready_time.ToDatetime() for row in gateway.reports[-1].versions}
    downloads, before = registry.downloads, len(gateway.reports)

    async def is_applied() -> bool:
        return gateway.reports[-1].revision == gateway.desired.revision

    for number in (2, 1, 2, 1):
        first.production, second.production = number == 1, number == 2
        gateway.want(first, second)
        await eventually(is_applied, within_s=30, what="the word that it is done")
        assert (await stub.ModelInfer(raw_request(ROW))).model_version == str(number)
    assert registry.downloads == downloads
    for report in gateway.reports[before:]:
        seen = {row.version: row.ready_time.ToDatetime() for row in report.versions}
        assert seen == loaded, "a version that stays loaded is never made ready again"


async def test_a_killed_replica_comes_back_by_itself_with_every_peer_away(
    replica: Replica, peers: Peers
) -> None:
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica.start()
    await replica.ready()
    downloads = peers.registry.downloads
    await peers.stop()
    replica.kill()
    replica.start()
    await replica.ready()
    assert (await replica.v2().ModelInfer(raw_request(ROW))).model_version == "1"
    before = len(peers.gateway.reports)
    await peers.start()

    async def is_attached() -> bool:
        return len(peers.gateway.reports) > before

    await eventually(is_attached, what="a report after gateway came back")
    first, last = peers.gateway.reports[0], peers.gateway.reports[-1]
    assert first.replica_id == last.replica_id
    assert first.incarnation != last.incarnation
    assert peers.registry.downloads == downloads


async def test_a_damaged_cache_is_fetched_again(replica: Replica, peers: Peers) -> None:
    wanted = peers.registry.add(1, graphs.sigmoid_sum(), production=True)
    peers.gateway.want(wanted)
    replica.start()
    await replica.ready()
    replica.kill()
    hexes = wanted.digest.removeprefix("sha256:")
    [path] = [found for found in replica.data_dir.rglob(hexes) if found.is_file()]
    path.write_bytes(b"damaged")
    replica.start()
    await replica.ready()
    assert (await replica.v2().ModelInfer(raw_request(ROW))).model_version == "1"


async def test_sigterm_tells_gateway_and_answers_every_call_in_flight(
    replica: Replica, peers: Peers
) -> None:
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica.start("--failpoints")
    await replica.ready()
    slow = control_service_pb2.Failpoint(
        id="s", project="default", model="m", slow_share=1.0, delay=Duration(seconds=1)
    )
    await replica.control().ArmFailpoint(control_service_pb2.ArmFailpointRequest(failpoint=slow))
    stub = replica.v2()
    calls = [asyncio.ensure_future(stub.ModelInfer(raw_request(ROW))) for _ in range(24)]
    await stub.ServerLive(v2.ServerLiveRequest())  # the calls before it have arrived
    assert await replica.stop() == 0
    assert [(await call).model_version for call in calls] == ["1"] * 24
    assert peers.gateway.reports[-1].draining
    assert peers.gateway.reports[-1].versions[0].state == replica_pb2.VERSION_STATE_READY
