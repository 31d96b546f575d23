"""A real Envoy under snapshots of ours, with small V2 backends behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from google.rpc import error_details_pb2, status_pb2
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import (
    Audience,
    MissingKey,
    Segment,
    Shadow,
    Stickiness,
    Traffic,
    Weight,
)
from volary_gateway.xds import snapshot as xds
from volary_gateway.xds.mesh import Mesh, snapshot_of
from volary_gateway.xds.snapshot import Snapshot, resource

from tests.unit.gateway.rig import Backend, Load, Rig, backends_of, rig, until

MODEL = ModelName("default", "flights")
TIMEOUT_S = 5.0


class Edge:
    """Two versions of one model on a backend each, and a client."""

    def __init__(self, running: Rig, one: Backend, two: Backend) -> None:
        self.rig, self.one, self.two = running, one, two
        self.generation = 0
        self.ready = {
            VersionName.of(MODEL, 1): (one.address,),
            VersionName.of(MODEL, 2): (two.address,),
        }
        self.channel = running.channel()
        self.stub = v2_grpc.GRPCInferenceServiceStub(self.channel)
        self.key = (("x-api-key", running.token()),)

    def mesh(self, *weights: tuple[int, int], **more) -> Mesh:
        self.generation += 1
        traffic = Traffic(
            MODEL,
            self.generation,
            tuple(Weight(*pair) for pair in weights),
            production=1,
            rollout="r1",
            step="canary",
            **more,
        )
        return Mesh(self.rig.edge, (traffic,), self.ready, (self.one.address, self.two.address))

    async def push(self, *weights: tuple[int, int], **more) -> Snapshot:
        return await self.serve(snapshot_of(self.mesh(*weights, **more)))

    async def serve(self, snapshot: Snapshot) -> Snapshot:
        self.rig.plane.publish(snapshot)
        assert await self.rig.plane.converge(snapshot, 10), self.rig.plane.rejections
        self.one.seen.clear()
        self.two.seen.clear()
        return snapshot

    async def infer(self, model: str = "flights", **more) -> v2.ModelInferResponse:
        metadata = more.pop("metadata", self.key)
        request = v2.ModelInferRequest(model_name=model, **more)
        return await self.stub.ModelInfer(request, metadata=metadata, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    one, two = Backend("one").start(), Backend("two").start()
    await one.server.start()
    await two.server.start()
    async with rig(tmp_path_factory.mktemp("edge")) as started:
        edge = Edge(started, one, two)
        await edge.push((1, 10_000))
        yield edge
        await edge.channel.close()
    await one.server.stop(None)
    await two.server.stop(None)


@pytest.fixture
async def edge(running: Edge) -> Edge:
    """The edge with version 1 serving everything."""
    await running.push((1, 10_000))
    return running


async def refusal(call) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    trailing = dict(refused.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert status.code == refused.value.code().value[0]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "volary.dev"
    return refused.value.code(), info


async def test_stock_client_is_routed_by_the_model_of_its_message(edge: Edge):
    reply = await edge.infer(id="7")
    assert reply.id == "7"
    [seen] = edge.one.calls()
    assert seen["volary-project"] == "default"
    assert seen["volary-model"] == "flights"
    assert seen["volary-version"] == "1"
    assert seen["volary-route"] == f"flights/r1/canary/{edge.generation}"
    assert "volary-shadow" not in seen
    assert seen["x-api-key"]


async def test_forged_headers_are_removed(edge: Edge):
    forged = (
        ("volary-version", "2"),
        ("volary-project", "other"),
        ("volary-shadow", "true"),
        ("volary-route", "x/y/z/1"),
        ("volary-anything", "1"),
        ("volary-scope", "-"),
        ("volary-service", "registry"),
    )
    await edge.infer(metadata=edge.key + forged)
    [seen] = edge.one.calls()
    assert seen["volary-version"] == "1"
    assert seen["volary-project"] == "default"
    assert "volary-shadow" not in seen
    assert "volary-anything" not in seen


async def test_request_key_is_the_edges_own(edge: Edge):
    await edge.infer(metadata=(*edge.key, ("x-request-id", "mine")))
    [seen] = edge.one.calls()
    assert seen["x-request-id"] != "mine"


async def test_key_comes_in_either_header(edge: Edge):
    bearer = (("authorization", f"Bearer {edge.rig.token()}"),)
    assert (await edge.infer(metadata=bearer)).model_name == "flights"


@pytest.mark.parametrize("credential", [(), (("x-api-key", "zzz"),), (("x-api-key", "a.b.c"),)])
async def test_no_or_broken_credential_is_unauthenticated(edge: Edge, credential):
    code, info = await refusal(edge.infer(metadata=credential))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert info.reason == "CREDENTIAL_INVALID"
    assert edge.one.calls() == []


async def test_expired_credential_is_unauthenticated(edge: Edge):
    expired = (("x-api-key", edge.rig.token(life_s=-3_600)),)
    code, _ = await refusal(edge.infer(metadata=expired))
    assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_revoked_key_is_refused_at_the_edge_and_others_are_not(edge: Edge):
    revoked = edge.rig.token(key_id="lost")
    mesh = edge.mesh((1, 10_000))
    await edge.serve(snapshot_of(replace(mesh, revoked=("lost",))))
    code, info = await refusal(edge.infer(metadata=(("x-api-key", revoked),)))
    assert (code, info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_REVOKED")
    await edge.infer()


async def test_unknown_model_is_not_found(edge: Edge):
    code, info = await refusal(edge.infer("nope"))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert info.metadata["model"] == "nope"


async def test_model_of_another_tenant_is_not_found(edge: Edge):
    stranger = (("x-api-key", edge.rig.token(project="other")),)
    code, info = await refusal(edge.infer(metadata=stranger))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_empty_model_is_an_invalid_argument(edge: Edge):
    code, info = await refusal(edge.infer(""))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_NAME_EMPTY")


@pytest.mark.parametrize("name", ["a/b", "../flights", "x" * 5_000, "naïve", "a\nb", "-"])
async def test_strange_model_is_not_found_and_harms_nobody(edge: Edge, name: str):
    code, _ = await refusal(edge.infer(name))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_compressed_message_is_refused_with_what_would_be_read(edge: Edge):
    request = v2.ModelInferRequest(model_name="flights")
    call = edge.stub.ModelInfer(
        request, metadata=edge.key, timeout=TIMEOUT_S, compression=grpc.Compression.Gzip
    )
    code, info = await refusal(call)
    assert (code, info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "COMPRESSION_UNSUPPORTED")


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff\x01", b""])
async def test_message_that_is_none_is_an_invalid_argument(edge: Edge, data: bytes):
    raw = edge.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    code, _ = await refusal(raw(data, metadata=edge.key, timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "method",
    [
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
        "/volary.inference.v1.ControlService/ArmFailpoint",
        "/volary.gateway.v1.ReplicaService/Attach",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        "/no.such.Service/Method",
    ],
)
async def test_method_that_is_not_of_the_edge_does_not_exist(edge: Edge, method: str):
    call = edge.channel.unary_unary(method)(b"", metadata=edge.key, timeout=TIMEOUT_S)
    code, info = await refusal(call)
    assert (code, info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")


async def test_liveness_needs_no_credential_and_the_index_goes_to_any_replica(edge: Edge):
    assert (await edge.stub.ServerLive(v2.ServerLiveRequest(), timeout=TIMEOUT_S)).live
    request = v2.RepositoryIndexRequest()
    await edge.stub.RepositoryIndex(request, metadata=edge.key, timeout=TIMEOUT_S)
    assert len(edge.one.calls("RepositoryIndex") + edge.two.calls("RepositoryIndex")) == 1
    code, _ = await refusal(edge.stub.RepositoryIndex(request, timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_information_goes_to_production_and_is_no_evidence(edge: Edge):
    await edge.push((2, 5_000), (1, 5_000))
    for _ in range(20):
        request = v2.ModelReadyRequest(name="flights")
        await edge.stub.ModelReady(request, metadata=edge.key, timeout=TIMEOUT_S)
    assert len(edge.one.calls("ModelReady")) == 20
    assert all("volary-route" not in seen for seen in edge.one.calls("ModelReady"))


async def test_pinned_version_bypasses_the_split_and_is_no_evidence(edge: Edge):
    await edge.infer(model_version="2")
    [seen] = edge.two.calls()
    assert seen["volary-version"] == "2"
    assert "volary-route" not in seen
    code, info = await refusal(edge.infer(model_version="7"))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND")


async def test_stream_is_routed_by_its_first_message(edge: Edge):
    async def requests():
        for _ in range(3):
            yield v2.ModelInferRequest(model_name="flights")

    call = edge.stub.ModelStreamInfer(requests(), metadata=edge.key, timeout=TIMEOUT_S)
    assert len([reply async for reply in call]) == 3
    assert edge.one.calls("ModelStreamInfer")[0]["volary-version"] == "1"


async def test_large_message_passes_and_a_larger_one_is_refused(edge: Edge):
    large = v2.ModelInferRequest(model_name="flights", raw_input_contents=[b"x" * (20 << 20)])
    await edge.stub.ModelInfer(large, metadata=edge.key, timeout=20)
    huge = v2.ModelInferRequest(model_name="flights", raw_input_contents=[b"x" * (70 << 20)])
    code, info = await refusal(edge.stub.ModelInfer(huge, metadata=edge.key, timeout=20))
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


async def test_call_without_a_deadline_gets_the_methods_and_a_long_one_is_cut(edge: Edge):
    request = v2.ModelInferRequest(model_name="flights")
    await edge.stub.ModelInfer(request, metadata=edge.key)
    await edge.stub.ModelInfer(request, metadata=edge.key, timeout=3_600)
    unset, cut = (seen for seen in edge.one.seen)
    assert 4 < unset.time_left_s <= 5
    assert 50 < cut.time_left_s <= 60


async def test_split_is_what_the_weights_say(edge: Edge):
    await edge.push((2, 3_000), (1, 7_000))
    replies = [await edge.infer() for _ in range(600)]
    candidate = backends_of(replies)["two"]
    assert 120 <= candidate <= 240  # 180 +- 5.3 standard deviations: wrong once in 10^7 runs
    assert {seen["volary-version"] for seen in edge.two.calls()} == {"2"}
    assert {seen["volary-version"] for seen in edge.one.calls()} == {"1"}


async def test_header_and_segment_have_a_split_of_their_own(edge: Edge):
    chosen = Segment("beta", "x-ring", ("beta", "dev.1"), (Weight(2, 10_000),))
    some = Segment("dutch", "x-country", ("nl",), (Weight(2, 5_000), Weight(1, 5_000)))
    await edge.push((2, 0), (1, 10_000), segments=(chosen, some))
    for ring in ("beta", "dev.1"):
        await edge.infer(metadata=(*edge.key, ("x-ring", ring), ("x-country", "nl")))
    assert len(edge.two.calls()) == 2
    for ring in ("devX1", "betamax", "BETA"):  # a value is whole and no pattern
        await edge.infer(metadata=(*edge.key, ("x-ring", ring)))
    assert len(edge.two.calls()) == 2
    assert {seen["volary-route"] for seen in edge.two.calls()} == {
        f"flights/-/beta/{edge.generation}"
    }
    for _ in range(200):
        await edge.infer(metadata=(*edge.key, ("x-country", "nl")))
    drawn = [s for s in edge.two.calls() if s["volary-route"].split("/")[2] == "dutch"]
    assert 62 <= len(drawn) <= 138  # 100 +- 5.4 standard deviations: wrong once in 10^7 runs
    assert edge.one.calls()[0]["volary-route"] == f"flights/r1/canary/{edge.generation}"


async def test_split_of_an_audience_is_for_nobody_else(edge: Edge):
    """Who is in it is drawn and counted; to everybody else production answers, uncounted."""
    audience = Audience("x-ring", ("beta", "dev.1"))
    sticky = Stickiness("x-user", "r1", MissingKey.BASELINE)
    await edge.push((2, 9_999), (1, 1), audience=audience, stickiness=sticky)
    users = [("x-user", f"user-{n}") for n in range(20)]
    for user in users:
        await edge.infer(metadata=(*edge.key, user))
        await edge.infer(metadata=(*edge.key, user, ("x-ring", "betamax")))
    await edge.infer(metadata=(*edge.key, ("x-ring", "beta")))  # of it, and of no user
    assert len(edge.one.calls()) == 41
    assert not edge.two.calls()
    assert {seen["volary-version"] for seen in edge.one.calls()} == {"1"}
    assert not any("volary-route" in seen or "volary-user" in seen for seen in edge.one.calls())
    for user in users:
        await edge.infer(metadata=(*edge.key, user, ("x-ring", "dev.1")))
    drawn = edge.two.calls()
    assert 19 <= len(drawn) <= 20  # one user in 10,000 is drawn for the other arm
    assert {seen["volary-route"] for seen in drawn} == {f"flights/r1/canary/{edge.generation}"}


async def users_of_candidate(edge: Edge, share: int, salt: str = "r1") -> set[str]:
    sticky = Stickiness("x-user", salt, MissingKey.BASELINE)
    await edge.push((2, share), (1, 10_000 - share), stickiness=sticky)
    users = [f"user-{n}" for n in range(150)]
    for user in users:
        await edge.infer(metadata=(*edge.key, ("x-user", user)))
    return {seen["x-user"] for seen in edge.two.calls()}


async def test_sticky_ramp_only_ever_adds_users(edge: Edge):
    few = await users_of_candidate(edge, 1_000)
    assert await users_of_candidate(edge, 1_000) == few
    many = await users_of_candidate(edge, 4_000)
    assert few < many
    assert await users_of_candidate(edge, 1_000, salt="r2") != few


async def test_missing_sticky_key_has_an_explicit_answer(edge: Edge):
    baseline = Stickiness("x-user", "r1", MissingKey.BASELINE)
    await edge.push((2, 9_999), (1, 1), stickiness=baseline)
    await edge.infer()
    assert "volary-route" not in edge.one.calls()[0]
    refuse = Stickiness("x-user", "r1", MissingKey.REFUSE)
    await edge.push((2, 9_999), (1, 1), stickiness=refuse)
    code, info = await refusal(edge.infer())
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STICKY_KEY_MISSING")


async def test_call_without_its_key_is_drawn_at_random_where_that_is_asked_for(edge: Edge):
    random = Stickiness("x-user", "r1", MissingKey.RANDOM)
    await edge.push((2, 5_000), (1, 5_000), stickiness=random)
    replies = [await edge.infer() for _ in range(200)]
    assert 62 <= backends_of(replies)["two"] <= 138  # 100 +- 5.4 standard deviations
    for seen in (*edge.one.calls(), *edge.two.calls()):  # evidence, but of no user
        assert seen["volary-route"] == f"flights/r1/canary/{edge.generation}"
        assert "volary-user" not in seen
    users = {user: backends_of([await edge.infer(metadata=(*edge.key, ("x-user", user)))
             for _ in range(3)]) for user in ("ann", "bob", "eve")}  # fmt: skip
    assert all(len(drawn) == 1 for drawn in users.values())


async def test_copy_carries_the_shadows_version_and_its_primarys_request_key(edge: Edge):
    await edge.push((1, 10_000), shadow=Shadow(2, 10_000))
    for _ in range(20):
        assert backends_of([await edge.infer()]) == {"one": 1}
    await until(lambda: len(edge.two.calls()) == 20)
    assert {seen["volary-version"] for seen in edge.two.calls()} == {"2"}
    assert {seen["volary-shadow"] for seen in edge.two.calls()} == {"true"}
    assert {seen["volary-version"] for seen in edge.one.calls()} == {"1"}
    keys = [{seen["x-request-id"] for seen in backend.calls()} for backend in (edge.one, edge.two)]
    assert keys[0] == keys[1]


async def test_every_attempt_is_logged_with_its_route(edge: Edge):
    snapshot_route = f"flights/r1/canary/{edge.generation + 1}"
    await edge.push((2, 5_000), (1, 5_000), shadow=None)
    for _ in range(30):
        await edge.infer()

    def logged() -> list:
        return [
            entry
            for entry in edge.rig.logs.attempts()
            if entry.request.request_headers.get("volary-route") == snapshot_route
        ]

    await until(lambda: len(logged()) == 30)
    served = {entry.request.request_headers["volary-version"] for entry in logged()}
    assert served == {"1", "2"}
    assert {entry.response.response_trailers["volary-tier"] for entry in logged()} == {"model"}


async def test_change_of_weights_under_load_fails_no_call(edge: Edge):
    async with Load(edge.infer) as load:
        for share in (100, 1_000, 5_000, 9_000, 10_000, 5_000, 0) * 2:
            await edge.push((2, share), (1, 10_000 - share))
            await load.more(20)


async def test_dead_replica_costs_no_call(edge: Edge):
    spare = Backend("spare").start()
    await spare.server.start()
    version = VersionName.of(MODEL, 1)
    alone = edge.ready[version]
    edge.ready[version] = (edge.one.address, spare.address)
    try:
        await edge.push((1, 10_000))
        await until(lambda: _healthy(edge, version) == 2)
        async with Load(edge.infer) as load:
            await until(lambda: len(spare.calls()) > 20)
            await spare.server.stop(None)
            await load.more(200)
    finally:
        edge.ready[version] = alone


def _healthy(edge: Edge, version: VersionName) -> int:
    stats = edge.rig.envoy.stats("membership_healthy")
    return stats.get(f"cluster.{version.cluster}.membership_healthy", 0)


async def test_version_without_a_replica_is_unavailable_and_its_calls_are_logged(edge: Edge):
    version = VersionName.of(MODEL, 3)
    edge.ready[version] = ()
    try:
        await edge.push((3, 10_000))
        code, _ = await refusal(edge.infer())
        assert code is grpc.StatusCode.UNAVAILABLE
        route = f"flights/r1/canary/{edge.generation}"

        def refused() -> list:
            records = edge.rig.logs.records.get("refusals", [])
            return [r for r in records if r.common_properties.route_name == route]

        await until(lambda: bool(refused()))
        assert refused()[0].request.request_headers["volary-project"] == "default"
    finally:
        del edge.ready[version]


async def test_refused_configuration_is_told_and_the_last_good_one_serves(edge: Edge):
    good = edge.rig.plane.snapshot
    broken = cluster_pb2.Cluster(name="broken")
    broken.common_lb_config.healthy_panic_threshold.value = 0
    broken.connect_timeout.seconds = -1
    items = {kind: list(named.values()) for kind, named in good.resources.items()}
    items[xds.CLUSTER].append(resource("broken", broken))
    bad = Snapshot.of(items)
    edge.rig.plane.publish(bad)
    await until(lambda: bool(edge.rig.plane.rejections))
    rejection = edge.rig.plane.rejections.pop()
    assert rejection.kind == xds.CLUSTER
    assert "broken" in rejection.names
    assert "duration" in rejection.text.lower()
    assert not await edge.rig.plane.converge(bad, 0.2)
    await edge.infer()


async def test_control_plane_is_asked_with_the_credential_of_the_file(edge: Edge):
    assert edge.rig.control.credentials == {"token-of-gateway"}
