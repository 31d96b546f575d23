"""Gateway as a process on a real Postgres, a real Envoy, replicas that attach."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.events.v1 import event_pb2
from volary.gateway.v1 import (
    edge_pb2,
    edge_service_pb2,
    edge_service_pb2_grpc,
    identity_service_pb2,
    replica_service_pb2,
    replica_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2,
)
from volary.policy.v1 import policy_pb2
from volary_kit.testing import eventually

from tests.unit.gateway.mesh import DIGEST, Mesh, mesh
from tests.unit.gateway.rig import Backend, Load, until

ROLLOUT = "projects/default/rollouts/r1"


@pytest.fixture(scope="module")
async def backends() -> AsyncIterator[list[Backend]]:
    made = [Backend(name).start() for name in ("a", "b")]
    for backend in made:
        await backend.server.start()
    yield made
    for backend in made:
        await backend.server.stop(None)


@pytest.fixture(scope="module")
async def started(
    tmp_path_factory: pytest.TempPathFactory, databases, backends: list[Backend]
) -> AsyncIterator[Mesh]:
    url = await databases.fresh("gateway")
    async with mesh(tmp_path_factory.mktemp("gateway"), url, backends) as running:
        await asyncio.wait_for(running.direct("test").channel_ready(), 60)
        yield running
    await databases.drop(url)


@pytest.fixture
async def running(started: Mesh, backends: list[Backend], request: pytest.FixtureRequest) -> Mesh:
    """A model of the test's own: versions 1 and 2 ready on two replicas, 1 in production."""
    started.model = request.node.name.removeprefix("test_").replace("_", "-")[:60]
    await started.load(1, 2)
    assert (await started.set(0, (1, 10_000))).in_effect
    for backend in backends:
        backend.seen.clear()
        backend.fail = None
    return started


class Client:
    """A V2 client at the edge."""

    def __init__(self, running: Mesh) -> None:
        self.model = running.model
        self.stub = v2_grpc.GRPCInferenceServiceStub(running.edge())
        self.key = running.api_key()

    async def infer(self) -> v2.ModelInferResponse:
        request = v2.ModelInferRequest(model_name=self.model)
        return await self.stub.ModelInfer(request, metadata=self.key, timeout=10)


async def reason_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    trailing = dict(refused.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return refused.value.code(), info.reason


async def code_of(call) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def counts(evidence, **wanted) -> Counter:
    """Return attempts by version over all outcomes, of the variants that match."""
    found: Counter = Counter()
    for variant in evidence.variants:
        if all(getattr(variant, key) == value for key, value in wanted.items()):
            found[variant.version] += sum(outcome.count for outcome in variant.outcomes)
    return found


def served(backends: list[Backend]) -> Counter:
    """Return the calls that replicas answered, by the version they were asked for."""
    return Counter(int(seen["volary-version"]) for each in backends for seen in each.calls())


def pairs(backends: list[Backend]) -> set[tuple[int, str]]:
    """Return which replica answered a call of which version."""
    return {(i, seen["volary-version"]) for i, each in enumerate(backends) for seen in each.calls()}


def healthy(running: Mesh, version: int) -> int:
    """Return how many healthy replicas of a version Envoy sees."""
    name = f"cluster.version/default/{running.model}/{version}.membership_healthy"
    return running.envoy.stats("membership_healthy").get(name, 0)


async def test_fenced_write_and_its_refusals(running: Mesh):
    stale = running.set(0, (2, 10_000))
    assert await reason_of(stale) == (grpc.StatusCode.ABORTED, "STALE_GENERATION")
    unready = running.set(1, (3, 1), (1, 9_999))
    assert await reason_of(unready) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_NOT_READY")
    lopsided = running.set(1, (2, 1), (1, 1))
    assert await reason_of(lopsided) == (grpc.StatusCode.INVALID_ARGUMENT, "WEIGHTS_TOTAL")
    after = await running.set(1, (2, 1_000), (1, 9_000), rollout=ROLLOUT, step="canary")
    assert after.in_effect
    assert after.route == f"{running.model}/r1/canary/2"
    assert (await running.get()).weights[0].version == 2


async def test_repeated_request_has_one_effect(running: Mesh):
    request_id = "6a1f0a7e-0b7e-4d0e-9d55-6f8d3f5c1a01"
    first = await running.set(1, (2, 500), (1, 9_500), request_id=request_id)
    again = await running.set(1, (2, 500), (1, 9_500), request_id=request_id)
    assert (first.generation, again.generation) == (2, 2)


async def test_evidence_equals_the_calls_that_were_made(running: Mesh, backends: list[Backend]):
    await running.set(
        1, (2, 3_000), (1, 7_000), rollout=ROLLOUT, step="canary", cause=traffic_pb2.CAUSE_STEP
    )
    client = Client(running)
    for _ in range(150):
        await client.infer()
    backends[0].fail = backends[1].fail = grpc.StatusCode.INTERNAL
    for _ in range(10):
        with pytest.raises(grpc.aio.AioRpcError):
            await client.infer()
    evidence = await running.counted("r1", 160)
    assert counts(evidence) == served(backends)
    codes: Counter = Counter()
    for variant in evidence.variants:
        assert (variant.step, variant.generation, variant.rollout) == ("canary", 2, "r1")
        assert sum(variant.latency.counts) == sum(o.count for o in variant.outcomes)
        assert len(variant.latency.counts) == len(variant.latency.edges_us) + 1
        for outcome in variant.outcomes:
            codes[outcome.code, outcome.tier] += outcome.count
    assert codes == {(0, "model"): 150, (13, "model"): 10}
    assert evidence.complete
    assert evidence.missing_records == 0


async def test_model_whose_name_has_dots_and_colons_is_counted(
    started: Mesh, backends: list[Backend]
):
    """Envoy's names of counters have dots of their own, and no colon."""
    started.model = "flights.eu:late.2"
    for backend in backends:
        backend.fail = None
    await started.load(1)
    assert (await started.set(0, (1, 10_000), rollout=ROLLOUT)).in_effect
    await Client(started).infer()
    assert counts(await started.counted(ROLLOUT, 1)) == {1: 1}


async def test_retries_are_counted_and_are_no_events(running: Mesh, backends: list[Backend]):
    await running.set(1, (2, 5_000), (1, 5_000), rollout=ROLLOUT, step="canary")
    await until(lambda: healthy(running, 1) == healthy(running, 2) == 2)
    client, before = Client(running), 0
    while len(pairs(backends)) < 4:  # from now on Envoy's thread knows both replicas of both
        await client.infer()
        before += 1
    good = len(backends[0].calls())
    backends[0].fail = grpc.StatusCode.UNAVAILABLE  # every call that meets it is tried again
    for _ in range(before, 40):
        await client.infer()
    failed = len(backends[0].calls()) - good
    assert failed  # round robin: a failure and its retry are one turn, so it may be each call
    evidence = await running.counted("r1", 40 + failed)
    outcomes = [o for variant in evidence.variants for o in variant.outcomes]
    assert sum(o.count for o in outcomes if o.error_event) == failed
    assert sum(o.first_attempts for o in outcomes) == 40
    assert sum(sum(v.latency.counts) for v in evidence.variants) == 40


async def test_shadow_is_counted_apart(running: Mesh, backends: list[Backend]):
    shadow = traffic_pb2.Shadow(version=2, fraction=10_000)
    await running.set(1, (1, 10_000), shadow=shadow, rollout=ROLLOUT, step="shadow")
    client = Client(running)
    for _ in range(40):
        await client.infer()
    await until(lambda: served(backends) == {1: 40, 2: 40})
    evidence = await running.counted("r1", 80)
    assert counts(evidence, shadow=False) == {1: 40}
    assert counts(evidence, shadow=True) == {2: 40}


async def test_a_copy_is_made_once_though_a_call_is_tried_again(
    running: Mesh, backends: list[Backend]
):
    shadow = traffic_pb2.Shadow(version=2, fraction=10_000)
    await running.set(1, (1, 10_000), shadow=shadow, rollout=ROLLOUT, step="shadow")
    await until(lambda: healthy(running, 1) == healthy(running, 2) == 2)
    backends[0].fail = grpc.StatusCode.UNAVAILABLE
    client = Client(running)
    while len(pairs(backends)) < 4 or len(backends[0].calls()) < 10:
        await client.infer()
    calls = len([seen for seen in backends[1].calls() if seen["volary-version"] == "1"])
    await until(lambda: served(backends)[2] >= calls)
    evidence = await running.counted("r1", served(backends).total())
    assert counts(evidence, shadow=True) == {2: calls}
    copies = [o for v in evidence.variants if v.shadow for o in v.outcomes]
    assert sum(o.first_attempts for o in copies) == calls


async def test_users_of_a_sticky_split_are_counted_once(running: Mesh):
    sticky = traffic_pb2.Stickiness(header="x-user", salt="r1")
    await running.set(1, (2, 5_000), (1, 5_000), stickiness=sticky, rollout=ROLLOUT, step="canary")
    client = Client(running)
    for n in range(60):
        request = v2.ModelInferRequest(model_name=client.model)
        metadata = (*client.key, ("x-user", f"user-{n % 20}"))
        await client.stub.ModelInfer(request, metadata=metadata, timeout=10)
    evidence = await running.counted("r1", 60)
    assert sum(variant.users.users for variant in evidence.variants) == 20
    assert sum(variant.users.users_with_error for variant in evidence.variants) == 0


async def test_user_is_in_the_first_error_of_one_step_only(running: Mesh, backends: list[Backend]):
    sticky = traffic_pb2.Stickiness(header="x-user", salt="r1")
    client = Client(running)
    backends[0].fail = backends[1].fail = grpc.StatusCode.INTERNAL

    async def step(expected: int, step: str, users: range) -> None:
        split = ((2, 10_000), (1, 0)) if expected < 3 else ((2, 0), (1, 10_000))
        await running.set(expected, *split, stickiness=sticky, rollout=ROLLOUT, step=step)
        for n in users:
            request = v2.ModelInferRequest(model_name=client.model)
            metadata = (*client.key, ("x-user", f"user-{n}"))
            await code_of(client.stub.ModelInfer(request, metadata=metadata, timeout=10))

    await step(1, "canary", range(10))
    await step(2, "50", range(5, 15))
    await step(3, "back", range(10, 20))  # under the other version
    evidence = await running.counted("r1", 30)
    found = {
        v.step: (v.users.users_with_error, v.users.users_first_error) for v in evidence.variants
    }
    assert found == {"canary": (10, 10), "50": (10, 5), "back": (10, 5)}


async def test_killed_control_plane_costs_no_call_and_comes_back_the_same(running: Mesh):
    await running.set(1, (2, 1_000), (1, 9_000), rollout=ROLLOUT, step="canary")
    before = await running.get()
    client = Client(running)
    async with Load(client.infer, callers=2) as load:
        await load.more(20)
        running.kill_gateway()
        await load.more(100)
        running.start_gateway()
        after = await running.get()
        await load.more(100)
    assert after.snapshot_version == before.snapshot_version
    assert after.generation == before.generation
    # what nobody listened to is not guessed at: the generation stays incomplete
    assert not (await running.evidence("r1")).complete
    await running.load(2)  # the replicas attach again by themselves, not at once
    again = await running.set(2, (2, 1_000), (1, 9_000), rollout=ROLLOUT, step="canary")
    assert again.in_effect
    await client.infer()


async def test_lost_records_are_found_and_a_new_generation_is_whole(running: Mesh):
    client = Client(running)
    await running.until_lossless()
    running.kill_gateway()
    for _ in range(25):
        await client.infer()
    running.start_gateway()
    await running.get()
    end = asyncio.get_running_loop().time() + 20
    while (await running.evidence()).missing_records != 25:
        assert asyncio.get_running_loop().time() < end, await running.evidence()
        await asyncio.sleep(0.2)
    assert not (await running.evidence()).complete
    await running.load(1)
    await running.set(1, (1, 10_000), rollout=ROLLOUT, step="again")
    await client.infer()
    await running.until_lossless("r1")


async def test_killed_envoy_is_back_with_the_same_configuration(running: Mesh):
    client = Client(running)
    await client.infer()
    running.envoy.kill()
    running.envoy.start()
    client = Client(running)  # the old one's connection may not know yet that it is broken
    call = v2.ModelInferRequest(model_name=client.model)
    await client.stub.ModelInfer(call, metadata=client.key, timeout=20, wait_for_ready=True)
    end = asyncio.get_running_loop().time() + 10
    while (await running.evidence()).complete:
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.1)


async def test_break_glass_fences_the_rollout_off(running: Mesh):
    await running.set(1, (2, 5_000), (1, 5_000), rollout=ROLLOUT, step="50")
    request = traffic_service_pb2.RollbackRequest(name=f"{running.name}/traffic", reason="it hurts")
    call = running.traffic.Rollback(request, metadata=running.api_key("operator"), timeout=10)
    back = await call
    assert back.in_effect
    assert back.cause == traffic_pb2.CAUSE_BREAK_GLASS
    assert [(w.version, w.weight) for w in back.weights] == [(1, 10_000)]
    assert back.principal == "principals/tester"
    late = running.set(2, (2, 10_000), rollout=ROLLOUT, step="promote")
    assert await reason_of(late) == (grpc.StatusCode.ABORTED, "STALE_GENERATION")


async def test_brake_takes_effect_and_only_lowers(running: Mesh, backends: list[Backend]):
    await running.set(1, (2, 9_000), (1, 1_000), rollout=ROLLOUT, step="90")

    def brake(weight: int):
        request = traffic_service_pb2.BrakeRequest(
            name=f"{running.name}/traffic", version=2, weight=weight
        )
        return running.traffic.Brake(request, metadata=running.as_service(), timeout=10)

    assert (await brake(0)).in_effect
    client = Client(running)
    for _ in range(30):
        await client.infer()
    assert served(backends) == {1: 30}
    raising = await reason_of(brake(1))
    assert raising == (grpc.StatusCode.INVALID_ARGUMENT, "BRAKE_RAISES")


async def test_segments_outlive_a_step_and_end_with_a_rollback(running: Mesh):
    beta = traffic_pb2.Segment(
        id="beta", header="x-ring", values=["beta"], weights=[{"version": 2, "weight": 10_000}]
    )
    segments = traffic_pb2.Segments(segments=[beta])
    await running.set(1, (1, 10_000), segments=segments)
    stepped = await running.set(2, (2, 100), (1, 9_900), rollout=ROLLOUT, step="canary")
    assert [*stepped.segments] == [beta]
    unready = traffic_pb2.Segments(segments=[beta])
    unready.segments[0].weights[0].version = 3
    call = running.set(3, (1, 10_000), segments=unready)
    assert await reason_of(call) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_NOT_READY")
    request = traffic_service_pb2.BrakeRequest(name=f"{running.name}/traffic", version=2, weight=50)
    braked = await running.traffic.Brake(request, metadata=running.as_service(), timeout=10)
    shares = [(w.version, w.weight) for w in braked.segments[0].weights]
    assert shares == [(2, 50), (1, 9_950)]
    back = traffic_service_pb2.RollbackRequest(name=f"{running.name}/traffic", reason="enough")
    after = await running.traffic.Rollback(back, metadata=running.as_service(), timeout=10)
    assert [*after.segments] == []


async def test_an_audience_lasts_until_the_next_write(running: Mesh):
    audience = traffic_pb2.Audience(header="x-ring", values=["beta", "dev"])
    written = await running.set(1, (2, 5_000), (1, 5_000), audience=audience, rollout=ROLLOUT)
    assert written.audience == audience
    request = traffic_service_pb2.BrakeRequest(name=f"{running.name}/traffic", version=2, weight=50)
    braked = await running.traffic.Brake(request, metadata=running.as_service(), timeout=10)
    assert braked.audience == audience
    after = await running.set(3, (1, 10_000))
    assert not after.HasField("audience")


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"header": "X-Upper"},
        {"values": []},
        {"weights": []},
        {"weights": [{"version": 1, "weight": 9_999}]},
    ],
)
async def test_segment_that_makes_no_sense_is_refused(started: Mesh, change: dict):
    sound = {
        "id": "s",
        "header": "x-ring",
        "values": ["b"],
        "weights": [{"version": 1, "weight": 10_000}],
    }
    segments = traffic_pb2.Segments(segments=[traffic_pb2.Segment(**(sound | change))])
    code, _ = await reason_of(started.set(1, (1, 10_000), segments=segments))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_watch_tells_every_change(running: Mesh):
    request = traffic_service_pb2.WatchTrafficRequest(name=f"{running.name}/traffic")
    watch = running.traffic.WatchTraffic(request, metadata=running.as_service())
    assert (await watch.read()).generation == 1
    await running.set(1, (2, 1), (1, 9_999))
    assert (await watch.read()).generation == 2
    watch.cancel()


async def test_change_of_traffic_leaves_an_event(running: Mesh):
    await running.set(1, (2, 10_000), production_version=2, cause=traffic_pb2.CAUSE_PROMOTE)
    connection = await asyncpg.connect(running.database_url)
    try:
        rows = await connection.fetch("SELECT event FROM gateway.kit_outbox ORDER BY position")
    finally:
        await connection.close()
    every = [event_pb2.Event.FromString(row["event"]) for row in rows]
    events = [event for event in every if event.traffic.model == running.model]
    assert [event.traffic.generation for event in events] == [1, 2]
    assert events[1].traffic.cause == "promote"
    assert len({event.id for event in events}) == 2


async def test_version_in_traffic_is_not_unloaded(running: Mesh):
    def unload(version: int):
        request = replica_service_pb2.UnloadVersionRequest(
            name=f"{running.name}/versions/{version}"
        )
        return running.replicas.UnloadVersion(request, metadata=running.as_service(), timeout=5)

    refused = await reason_of(unload(1))
    assert refused == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_IN_TRAFFIC")
    await unload(2)
    late = running.set(1, (2, 1), (1, 9_999))
    assert await reason_of(late) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_NOT_READY")


async def test_an_earlier_rollout_neither_loads_nor_unloads_after_a_later_one(running: Mesh):
    name, metadata = f"{running.name}/versions/2", running.as_service()

    def load(generation: int):
        request = replica_service_pb2.LoadVersionRequest(
            name=name, digest=DIGEST, rollout_generation=generation
        )
        return running.replicas.LoadVersion(request, metadata=metadata, timeout=5)

    def unload(generation: int):
        request = replica_service_pb2.UnloadVersionRequest(name=name, rollout_generation=generation)
        return running.replicas.UnloadVersion(request, metadata=metadata, timeout=5)

    stale = (grpc.StatusCode.ABORTED, "STALE_GENERATION")
    await load(10)
    await load(20)  # there already: it is the later one's from here on
    assert await reason_of(unload(10)) == stale
    assert await reason_of(load(10)) == stale
    await running.set(1, (2, 1), (1, 9_999))  # it is still there
    await running.set(2, (1, 10_000))
    await unload(20)
    assert await reason_of(load(10)) == stale  # also when nothing is left of it
    await load(0)  # a person is no rollout
    await unload(0)


async def test_stream_whose_first_report_refers_to_none_is_refused(started: Mesh):
    attach = replica_service_pb2_grpc.ReplicaServiceStub(started.direct("inference")).Attach
    stream = attach(metadata=started.as_service("inference"), timeout=30)
    await stream.write(
        replica_service_pb2.AttachRequest(
            replica_id="short",
            address="127.0.0.1:1",
            incarnation="one",
            versions_unchanged=True,
        )
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        while await stream.read() is not grpc.aio.EOF:
            pass
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_version_never_changes_its_artifact(running: Mesh):
    request = replica_service_pb2.LoadVersionRequest(
        name=f"{running.name}/versions/1", digest="sha256:" + "cd" * 32
    )
    call = running.replicas.LoadVersion(request, metadata=running.as_service(), timeout=5)
    assert await reason_of(call) == (grpc.StatusCode.FAILED_PRECONDITION, "DIGEST_CHANGED")


async def test_key_is_shown_once_works_at_the_edge_and_ends_with_its_revocation(running: Mesh):
    admin = running.api_key("admin")
    made = await running.identity.CreateApiKey(
        identity_service_pb2.CreateApiKeyRequest(
            parent="projects/default", principal_id="ann", roles=[policy_pb2.ROLE_PREDICTOR]
        ),
        metadata=admin,
        timeout=5,
    )
    client = Client(running)
    client.key = (("x-api-key", made.token),)
    await client.infer()
    request = identity_service_pb2.ListApiKeysRequest(parent="projects/default")
    listed = await running.identity.ListApiKeys(request, metadata=admin, timeout=5)
    assert [(key.name, key.token) for key in listed.api_keys] == [(made.name, "")]
    revoke = identity_service_pb2.RevokeApiKeyRequest(name=made.name)
    await running.identity.RevokeApiKey(revoke, metadata=admin, timeout=5)
    end = asyncio.get_running_loop().time() + 5
    while await code_of(client.infer()) is not grpc.StatusCode.UNAUTHENTICATED:
        assert asyncio.get_running_loop().time() < end
    while await _of_service_called_directly(running, made.token) != "CREDENTIAL_REVOKED":
        assert asyncio.get_running_loop().time() < end
    connection = await asyncpg.connect(running.database_url)
    try:
        kept = await connection.fetchrow("SELECT * FROM gateway.api_keys")
    finally:
        await connection.close()
    assert all(made.token.encode() != value and made.token != value for value in kept.values())


async def _of_service_called_directly(running: Mesh, token: str) -> str:
    """Return how a service behind the edge refuses a key: by its role, or because it is revoked."""
    request = traffic_service_pb2.ListTrafficRequest(parent="projects/default")
    call = running.traffic.ListTraffic(request, metadata=(("x-api-key", token),), timeout=5)
    return (await reason_of(call))[1]


async def test_own_api_is_reached_through_the_edge(running: Mesh):
    stub = type(running.traffic)(running.edge())
    request = traffic_service_pb2.GetTrafficRequest(name=f"{running.name}/traffic")
    reply = await stub.GetTraffic(request, metadata=running.api_key("viewer"), timeout=5)
    assert reply.generation == 1
    code, _ = await reason_of(stub.GetTraffic(request, metadata=running.api_key(), timeout=5))
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_limits_are_managed_by_name(running: Mesh):
    stub = edge_service_pb2_grpc.EdgeServiceStub(running.direct("test"))
    operator = running.api_key("operator")
    names = [f"{running.name}/limit", "projects/default/principals/-/limit"]
    for name in names:
        asked = edge_pb2.Limit(name=name, calls_per_second=1_000)
        request = edge_service_pb2.SetLimitRequest(limit=asked)
        assert (await stub.SetLimit(request, metadata=operator, timeout=5)).burst == 1_000
    listing = edge_service_pb2.ListLimitsRequest(parent="projects/default")
    listed = await stub.ListLimits(listing, metadata=operator, timeout=5)
    assert [each.name for each in listed.limits] == names
    await Client(running).infer()
    for name in names:
        request = edge_service_pb2.DeleteLimitRequest(name=name)
        await stub.DeleteLimit(request, metadata=operator, timeout=5)
    gone = stub.DeleteLimit(request, metadata=operator, timeout=5)
    assert await reason_of(gone) == (grpc.StatusCode.NOT_FOUND, "LIMIT_NOT_FOUND")
    foreign = edge_pb2.Limit(name="projects/other/models/m/limit", calls_per_second=1)
    request = edge_service_pb2.SetLimitRequest(limit=foreign)
    code, _ = await reason_of(stub.SetLimit(request, metadata=operator, timeout=5))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_model_whose_replicas_refuse_is_answered_by_its_rule(
    running: Mesh, backends: list[Backend]
):
    stub = edge_service_pb2_grpc.EdgeServiceStub(running.direct("test"))
    name = f"{running.name}/fallback"
    rule = edge_pb2.Fallback(
        name=name,
        tier=edge_pb2.FALLBACK_TIER_RULE,
        outputs=[edge_pb2.FallbackOutput(name="probability", row=[0.25])],
    )
    request = edge_service_pb2.SetFallbackRequest(fallback=rule)
    await stub.SetFallback(request, metadata=running.as_service(), timeout=5)
    await running.set(1, (2, 5_000), (1, 5_000), rollout=ROLLOUT, step="canary")
    for backend in backends:
        backend.fail = grpc.StatusCode.UNAVAILABLE
    client = Client(running)
    call = v2.ModelInferRequest(model_name=running.model, id="7")
    call.inputs.add(name="features", datatype="FP32", shape=[3, 2])
    reply = await client.stub.ModelInfer(call, metadata=client.key, timeout=10)
    assert reply.parameters["volary_tier"].string_param == "rule"
    assert reply.id == "7"
    assert [*reply.outputs[0].shape] == [3, 1]
    assert [*reply.outputs[0].contents.fp32_contents] == [0.25] * 3
    # the caller saw an answer; the attempts say what the versions did
    evidence = await running.counted("r1", 4)
    outcomes = [o for variant in evidence.variants for o in variant.outcomes]
    assert all(outcome.error_event for outcome in outcomes)
    assert sum(o.count for o in outcomes if o.tier == "rule") == 1
    assert [o.code for o in outcomes if o.first_attempts] == [14]
    forget = edge_service_pb2.DeleteFallbackRequest(name=name)
    await stub.DeleteFallback(forget, metadata=running.as_service(), timeout=5)
    asked = edge_service_pb2.GetFallbackRequest(name=name)
    gone = stub.GetFallback(asked, metadata=running.as_service(), timeout=5)
    assert await reason_of(gone) == (grpc.StatusCode.NOT_FOUND, "FALLBACK_NOT_FOUND")


@pytest.mark.parametrize(
    "fallback",
    [
        {"tier": edge_pb2.FALLBACK_TIER_RULE},
        {"tier": edge_pb2.FALLBACK_TIER_NONE, "outputs": [{"name": "p", "row": [1.0]}]},
        {"tier": edge_pb2.FALLBACK_TIER_RULE, "outputs": [{"name": "p", "row": [1.0]}] * 2},
        {"tier": edge_pb2.FALLBACK_TIER_RULE, "outputs": [{"name": "p", "row": []}]},
        {},
    ],
)
async def test_fallback_that_makes_no_sense_is_refused(started: Mesh, fallback: dict):
    stub = edge_service_pb2_grpc.EdgeServiceStub(started.direct("test"))
    asked = edge_pb2.Fallback(name="projects/default/models/m/fallback", **fallback)
    request = edge_service_pb2.SetFallbackRequest(fallback=asked)
    code, _ = await reason_of(stub.SetFallback(request, metadata=started.as_service(), timeout=5))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_other_tenants_traffic_does_not_exist(running: Mesh):
    request = traffic_service_pb2.GetTrafficRequest(name="projects/other/models/flights/traffic")
    call = running.traffic.GetTraffic(request, metadata=running.as_service(), timeout=5)
    assert (await reason_of(call))[0] is grpc.StatusCode.NOT_FOUND


async def test_state_of_the_world_form_of_discovery_is_refused_by_name(started: Mesh):
    stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(started.direct("test"))
    call = stub.StreamAggregatedResources(metadata=started.as_service("gateway"), timeout=5)
    # nothing is written: where the refusal is sooner, a write fails and makes it INTERNAL
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "StreamAggregatedResources" in await call.details()


async def test_calls_on_their_way_to_a_version_are_counted_until_they_end(running: Mesh):
    async def seen() -> replica_service_pb2.VersionReadiness:
        request = replica_service_pb2.GetVersionReadinessRequest(
            name=f"{running.name}/versions/1", count_calls=True
        )
        return await running.replicas.GetVersionReadiness(
            request, metadata=running.as_service(), timeout=5
        )

    is_over = asyncio.Event()

    async def requests():
        yield v2.ModelInferRequest(model_name=running.model)
        await is_over.wait()

    client = Client(running)
    assert (await seen()).calls_in_flight == 0
    stream = client.stub.ModelStreamInfer(requests(), metadata=client.key, timeout=30)
    answers = aiter(stream)
    await anext(answers)
    assert (await seen()).calls_in_flight == 1
    is_over.set()
    assert [answer async for answer in answers] == []

    async def is_quiet() -> bool:
        found = await seen()
        return found.HasField("calls_in_flight") and not found.calls_in_flight

    await eventually(is_quiet)
