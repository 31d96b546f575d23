"""Rollouts and an experiment through a real gateway and a real Envoy.

Only the replicas are small, and the registry a table: traffic, evidence and exposed calls are what
Envoy's log of attempts says.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import pytest
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from temporalio import activity
from temporalio.testing import ActivityEnvironment
from volary.gateway.v1 import replica_service_pb2
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.clock import SystemClock
from volary_kit.errors import Aborted
from volary_kit.identity import TokenSource
from volary_kit.outgoing.dress import MeshDress
from volary_kit.webhooks import Webhooks
from volary_workflows.experiment.activities import ExperimentActivities
from volary_workflows.experiment.messages import Arm, ExperimentSpec, Metric
from volary_workflows.judge.inputs import Guard
from volary_workflows.rollout.activities import RolloutActivities
from volary_workflows.rollout.explaining import explanation_of
from volary_workflows.rollout.messages import RolloutSpec, RolloutStatus, Step
from volary_workflows.rollout.tasks import StagingReport, Subject
from volary_workflows.starting import start_experiment, start_rollout
from volary_workflows.worker import make_worker, register_attributes

from tests.unit.gateway.mesh import DIGEST, Mesh, mesh
from tests.unit.gateway.rig import Backend, Load
from tests.unit.workflows.rollout.test_activities import Peers, bought

SPEC = RolloutSpec(
    model="",
    candidate=2,
    steps=[Step(2_000, 0.5, 50)],
    bake_s=0.3,
    guards=[Guard(ceiling=0.2)],
    poll_s=0.2,
    max_extensions=200,
)
RARE, OFTEN = 0.02, 0.3


class Flaky(Backend):
    """A replica whose versions fail each with a chance of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.chances: dict[str, float] = {}
        self._random = random.Random(11)

    async def _note(self, method, context) -> None:
        version = dict(context.invocation_metadata()).get("volary-version", "")
        is_failing = self._random.random() < self.chances.get(version, 0.0)
        self.fail = grpc.StatusCode.INTERNAL if is_failing else None
        await super()._note(method, context)

    def arms(self) -> dict[str, set[str]]:
        """Return the versions that each user met on a route of an experiment."""
        met: dict[str, set[str]] = defaultdict(set)
        for call in self.calls():
            if ".x." in call.get("volary-route", ""):
                met[call["user-id"]].add(call["volary-version"])
        return met

    def first_attempts(self, version: int) -> int:
        """Return how many calls the version was the first to be asked for."""
        return sum(
            call.get("volary-version") == str(version)
            and call.get("x-envoy-attempt-count", "1") == "1"
            for call in self.calls()
        )


@pytest.fixture(scope="module")
async def flaky() -> AsyncIterator[Flaky]:
    backend = Flaky("a")
    backend.start()
    await backend.server.start()
    yield backend
    await backend.server.stop(None)


@pytest.fixture(scope="module")
async def running(tmp_path_factory, databases, flaky) -> AsyncIterator[Mesh]:
    url = await databases.fresh("gateway")
    async with mesh(tmp_path_factory.mktemp("through-envoy"), url, [flaky]) as found:
        await asyncio.wait_for(found.direct("test").channel_ready(), 60)
        yield found
    await databases.drop(url)


class Staged:
    """Small replicas have no golden rows: this stage is tested elsewhere."""

    @activity.defn
    async def stage_version(self, subject: Subject) -> StagingReport:
        return StagingReport(1, [])


@asynccontextmanager
async def working(temporal, running: Mesh, peers: Peers) -> AsyncIterator[str]:
    """Run a worker on the real gateway; yields its queue."""
    server = grpc.aio.server()
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(peers, server)
    monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server(peers, server)
    registry = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    gateway = f"127.0.0.1:{running.port}"
    addresses = {"gateway": gateway, "registry": registry, "monitor": registry}
    tokens = TokenSource(running.keys["workflows"], SystemClock())
    channels = Channels("workflows", addresses, MeshDress(tokens))
    rollout = RolloutActivities(channels, Webhooks([]), SystemClock())
    experiment = ExperimentActivities(channels)
    activities = [
        experiment.check_experiment,
        experiment.set_split,
        experiment.judge_experiment,
        Staged().stage_version,
        rollout.check_rollout,
        rollout.decide_approval,
        rollout.load_version,
        rollout.unload_version,
        rollout.set_traffic,
        rollout.read_traffic,
        rollout.judge_rollout,
    ]
    queue = f"through-envoy-{running.model}"
    await register_attributes(temporal)
    try:
        async with make_worker(temporal, activities, task_queue=queue):
            yield queue
    finally:
        await channels.close()
        await server.stop(None)


class Users:
    """Callers who come again and again, each by its own name, to a model of the test's own."""

    def __init__(self, running: Mesh, users: int) -> None:
        self._model, self._key = running.model, running.api_key()
        self._stub = v2_grpc.GRPCInferenceServiceStub(running.edge())
        self._names = itertools.cycle(f"user-{i}" for i in range(users))

    async def call(self) -> None:
        metadata = (*self._key, ("user-id", next(self._names)))
        request = v2.ModelInferRequest(model_name=self._model)
        try:
            await self._stub.ModelInfer(request, metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.INTERNAL, error  # noqa: PT017


async def served(running: Mesh, flaky: Flaky, chances, model: str) -> None:
    """Put version 1 of a model of the test's own into production."""
    running.model = model
    await running.load(1)
    assert (await running.set(0, (1, 10_000), production_version=1)).in_effect
    flaky.seen.clear()
    flaky.chances = chances


async def rolled(
    temporal, running: Mesh, flaky: Flaky, chances, model: str, spec: RolloutSpec = SPEC
):
    """Roll version 2 out under steady calls; return its end, and what is stored."""
    await served(running, flaky, chances, model)
    peers = Peers(version=model_pb2.ModelVersion(version=2, digest=DIGEST))
    users = Users(running, 50)
    async with working(temporal, running, peers) as queue, Load(users.call, callers=2):
        handle = await start_rollout(temporal, replace(spec, model=model), task_queue=queue)
        async with asyncio.timeout(90):
            status = await handle.result()
    return status, peers


async def counted(running: Mesh, rollout: str, version: int, attempts: int) -> int:
    """Return the first attempts of a version that Envoy's log has, once they are all here."""
    async with asyncio.timeout(15):
        while True:
            evidence = await running.evidence(f"projects/default/rollouts/{rollout}")
            found = sum(
                outcome.first_attempts
                for variant in evidence.variants
                if variant.version == version
                for outcome in variant.outcomes
            )
            if found >= attempts:
                return found
            await asyncio.sleep(0.1)


async def test_an_equal_version_is_promoted(temporal, running, flaky):
    chances = {"1": RARE, "2": RARE}
    # alpha is the share of such runs that may go back by chance: none of this test's should
    spec = replace(SPEC, guards=[Guard(ceiling=0.2, alpha=1e-6)])
    status, _ = await rolled(temporal, running, flaky, chances, "a-and-a", spec)
    assert isinstance(status, RolloutStatus)
    assert (status.state, status.reason) == ("PROMOTED", ""), status.look
    assert (await running.get()).production_version == 2


async def test_a_version_that_fails_goes_back_and_its_calls_are_counted(temporal, running, flaky):
    status, peers = await rolled(temporal, running, flaky, {"1": RARE, "2": OFTEN}, "a-and-b")
    assert status.state == "ROLLED_BACK"
    assert status.reason.startswith("CANDIDATE_WORSE")  # whether or not a record is on its way
    traffic = await running.get()
    assert [(w.version, w.weight) for w in traffic.weights] == [(1, 10_000)]
    exposed = flaky.first_attempts(2)
    assert await counted(running, status.rollout, 2, exposed) == exposed
    assert 0 < status.look.exposed_calls <= exposed < 1_000
    assert peers.stored[status.look.evaluation].verdict == "FAIL"


async def test_a_resumed_worker_lets_be_what_a_later_rollout_has_loaded(running):
    """What a worker still had in hand when it was frozen, after two more rollouts of the model."""
    running.model = "resumed"
    earlier = Subject("default", "resumed", 2, DIGEST, rollout_generation=1_000)
    later = replace(earlier, rollout_generation=2_000)
    async with calling(running) as activities:
        run = ActivityEnvironment().run
        assert await run(activities.load_version, earlier) > 0
        assert await run(activities.load_version, later) > 0
        assert not await run(activities.unload_version, earlier)
        seen = await readiness(running, 2)
        assert seen.ready_replicas == seen.attached_replicas > 0
        with pytest.raises(Aborted) as refused:
            await run(activities.load_version, earlier)
        assert refused.value.reason == "STALE_GENERATION"
        assert await run(activities.unload_version, later)


async def readiness(running: Mesh, version: int) -> replica_service_pb2.VersionReadiness:
    name = f"{running.name}/versions/{version}"
    request = replica_service_pb2.GetVersionReadinessRequest(name=name)
    return await running.replicas.GetVersionReadiness(
        request, metadata=running.as_service(), timeout=5
    )


@asynccontextmanager
async def calling(running: Mesh) -> AsyncIterator[RolloutActivities]:
    """Yield activities on the real gateway; the other peers are not asked."""
    addresses = dict.fromkeys(("gateway", "registry", "monitor"), f"127.0.0.1:{running.port}")
    tokens = TokenSource(running.keys["workflows"], SystemClock())
    channels = Channels("workflows", addresses, MeshDress(tokens))
    try:
        yield RolloutActivities(channels, Webhooks([]), SystemClock())
    finally:
        await channels.close()


@dataclass
class Shop(Peers):
    """Peers whose monitor knows what users bought: of version 2 most do, of version 1 few."""

    flaky: Flaky | None = None

    async def SumOutcomes(self, request, context):
        assert self.flaky is not None
        arms = self.flaky.arms()
        assert all(len(versions) == 1 for versions in arms.values()), "a user changed its arm"
        counts = Counter(next(iter(versions)) for versions in arms.values())
        variants = [bought(v, counts[str(v)], share, 0) for v, share in ((1, 0.1), (2, 0.9))]
        return monitor_pb2.OutcomeSums(variants=[each for each in variants if each.count])


async def test_users_stay_with_their_arm_and_the_better_one_wins(temporal, running, flaky):
    await served(running, flaky, {}, "experiment")
    shop = Shop(version=model_pb2.ModelVersion(version=2, digest=DIGEST), flaky=flaky)
    spec = ExperimentSpec(
        name="bolder",
        model="experiment",
        arms=[Arm("today", 1, 5_000), Arm("bold", 2, 5_000)],
        control="today",
        metric=Metric("bought"),
        sticky_by="user-id",
        min_effect=0.1,
        min_duration_s=2.0,
        max_duration_s=60.0,
        poll_s=0.3,
    )
    users = Users(running, 300)
    async with working(temporal, running, shop) as queue, Load(users.call, callers=2):
        handle = await start_experiment(temporal, spec, task_queue=queue)
        async with asyncio.timeout(90):
            status = await handle.result()
    assert (status.state, status.look.verdict, status.look.winner) == (
        "CONCLUDED",
        "WINNER",
        "bold",
    ), status.look
    units = {arm.name: arm.units for arm in status.look.arms}
    assert 200 < sum(units.values()) <= 300
    assert min(units.values()) > 100
    traffic = await running.get()
    assert ([(w.version, w.weight) for w in traffic.weights], traffic.stickiness.header) == (
        [(1, 10_000)],
        "",
    )
    assert explanation_of(shop.stored[status.look.report]).agrees
