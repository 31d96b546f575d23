"""On a real Temporal: one experiment of a group, one owner of the traffic, a worker lost."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from temporalio.client import WorkflowFailureError
from volary.gateway.v1 import evidence_pb2, traffic_pb2
from volary.monitor.v1 import monitor_pb2
from volary_kit.errors import AlreadyExists
from volary_workflows.experiment.messages import ExperimentStatus
from volary_workflows.identifiers import experiment_group_id
from volary_workflows.rollout.messages import Command
from volary_workflows.starting import start_experiment, start_rollout
from volary_workflows.worker import register_attributes

from tests.unit.workflows import test_worker_process as processes
from tests.unit.workflows.rollout import world as rolling
from tests.unit.workflows.rollout.test_activities import bought, sticky_variant

from .world import SPEC, WON, World, serving, started

ADA = Command("principals/ada")
QUICK = replace(SPEC, min_duration_s=0.0, max_duration_s=60.0, poll_s=0.2)
GROUPED = replace(QUICK, group="checkout")


@pytest.fixture
async def real(temporal):
    await register_attributes(temporal)
    return SimpleNamespace(client=temporal)


async def running(handle) -> ExperimentStatus:
    async with asyncio.timeout(30):
        while True:
            status = await handle.query("status", result_type=ExperimentStatus)
            if status.state == "RUNNING":
                return status
            await asyncio.sleep(0.05)


async def stopped(handle) -> ExperimentStatus:
    await handle.execute_update("stop", ADA, result_type=ExperimentStatus)
    return await handle.result()


async def test_one_of_a_group_at_a_time(real):
    world, other = World(), World(look=WON)
    async with serving(real, world) as first, serving(real, other) as second:
        handle = await started(real, first, GROUPED)
        await running(handle)
        refused = await started(real, second, replace(GROUPED, model="arrivals"))
        with pytest.raises(WorkflowFailureError) as failure:
            await refused.result()
        assert list(failure.value.cause.details[0]) == ["group"]
        assert (other.splits, other.loaded) == ([], set())
        assert (await stopped(handle)).state == "STOPPED"
        again = await started(real, second, replace(GROUPED, model="departures"))
        assert (await again.result()).state == "CONCLUDED"


async def test_a_group_is_free_again_when_its_holder_is_terminated(real):
    async with serving(real, World()) as first, serving(real, World(look=WON)) as second:
        spec = replace(GROUPED, group="banner")
        handle = await started(real, first, spec)
        await running(handle)
        held = real.client.get_workflow_handle(experiment_group_id("default", "banner"))
        await handle.terminate("by an operator")
        with pytest.raises(WorkflowFailureError):
            await held.result()  # the server ends the child a moment after its parent
        again = await started(real, second, replace(spec, model="departures"))
        assert (await again.result()).state == "CONCLUDED"


async def test_an_operator_who_frees_the_group_does_not_end_the_experiment(real):
    async with serving(real, World()) as queue:
        handle = await started(real, queue, replace(GROUPED, group="header"))
        await running(handle)
        held = real.client.get_workflow_handle(experiment_group_id("default", "header"))
        await held.terminate("by an operator")
        assert (await handle.query("status", result_type=ExperimentStatus)).state == "RUNNING"
        assert (await stopped(handle)).state == "STOPPED"


async def test_a_model_has_one_owner_of_its_traffic(real):
    spec = replace(QUICK, model="owned")
    plan = replace(rolling.SPEC, model="owned", max_extensions=1_000, poll_s=0.2)
    async with serving(real, World()) as queue:
        handle = await start_experiment(real.client, spec, task_queue=queue)
        with pytest.raises(AlreadyExists) as second:
            await start_experiment(real.client, spec, task_queue=queue)
        with pytest.raises(AlreadyExists) as rollout:
            await start_rollout(real.client, plan, task_queue=queue)
        await running(handle)
        await stopped(handle)
    assert {second.value.reason, rollout.value.reason} == {"EXPERIMENT_IN_PROGRESS"}
    world = rolling.World(looks={"shadow": rolling.UNSURE})
    async with rolling.serving(real, world) as queue:
        held = await start_rollout(real.client, plan, task_queue=queue)
        with pytest.raises(AlreadyExists) as experiment:
            await start_experiment(real.client, spec, task_queue=queue)
        await rolling.reached(held, "SHADOW")
        await held.execute_update("abort", ADA)
        await held.result()
    assert experiment.value.reason == "ROLLOUT_IN_PROGRESS"


@dataclass
class Mesh(processes.Mesh):
    """The mesh of the rollouts' tests, whose reply to the split waits until it is released."""

    def now(self, model):
        whole = [traffic_pb2.Weight(version=1, weight=10_000)]
        start = traffic_pb2.Traffic(generation=3, production_version=1, weights=whole)
        return self.traffic.get(model, start)

    async def SetTraffic(self, request, context):
        reply = await super().SetTraffic(request, context)
        if request.step == "split":
            await self.released.wait()
        return reply

    async def GetEvidence(self, request, context):
        variants = [
            sticky_variant(v, 5_000, errors=0, first_errors=0, generation=4) for v in (1, 2)
        ]
        return evidence_pb2.Evidence(generation=4, variants=variants)

    async def SumOutcomes(self, request, context):
        return monitor_pb2.OutcomeSums(
            variants=[bought(1, 5_000, 0.25, 0), bought(2, 5_000, 0.4, 0)]
        )

    async def ListReplicas(self, request, context):
        reply = await super().ListReplicas(request, context)
        reply.replicas[0].versions[0].model = "killed"
        return reply


async def test_a_killed_worker_loses_no_experiment_and_doubles_no_write(
    temporal, temporal_address, redis_url
):
    mesh = Mesh()
    async with processes.serving(mesh) as address:
        environment = processes.environment_of(temporal_address, redis_url, address)
        async with processes.worker(environment) as first:
            handle = await start_experiment(temporal, replace(QUICK, model="killed"))
            async with asyncio.timeout(60):
                while not mesh.written["killed"]:
                    assert first.returncode is None, "the worker ended by itself"
                    await asyncio.sleep(0.05)
            first.send_signal(signal.SIGKILL)
            await first.wait()
            mesh.released.set()
            async with processes.worker(environment), asyncio.timeout(90):
                status = await handle.result()
    assert (status.state, status.look.winner) == ("CONCLUDED", "bold")
    assert Counter(change.step for change in mesh.written["killed"]) == {"split": 1, "end": 1}
    assert list(mesh.stored) == [status.look.report]
