"""The activities of an experiment against recording servers: what they ask, write and store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import pytest
from temporalio.testing import ActivityEnvironment
from volary.gateway.v1 import (
    evidence_pb2,
    evidence_service_pb2_grpc,
    traffic_pb2,
    traffic_service_pb2_grpc,
)
from volary.monitor.v1 import monitor_pb2, monitor_service_pb2_grpc
from volary.registry.v1 import model_pb2, registry_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.errors import Unavailable
from volary_kit.outgoing.dress import MeshDress
from volary_kit.webhooks import Webhooks
from volary_workflows.experiment.activities import ExperimentActivities, request_of
from volary_workflows.experiment.messages import Arm, Metric, Segment
from volary_workflows.experiment.tasks import ExperimentTask, Split
from volary_workflows.rollout.activities import RolloutActivities
from volary_workflows.rollout.explaining import explanation_of
from volary_workflows.rollout.messages import RolloutSpec, Step
from volary_workflows.rollout.tasks import Subject

from tests.unit.workflows.rollout.test_activities import CLOCK, Peers, bought, sticky_variant

from .world import SPEC

ID = "delays.x.bolder.01234567"
WHOLE = traffic_pb2.Traffic(
    generation=7, production_version=1, weights=[traffic_pb2.Weight(version=1, weight=10_000)]
)
SPLIT = traffic_pb2.Traffic(
    generation=8,
    production_version=1,
    rollout=f"projects/default/rollouts/{ID}",
    weights=[traffic_pb2.Weight(version=v, weight=5_000) for v in (2, 1)],
)
VERSION = model_pb2.ModelVersion(version=2, digest="sha256:1", threshold=0.4)
TASK = ExperimentTask(SPEC, ID, [8], is_due=True)


@dataclass
class MutePeers(Peers):
    """Peers whose monitor is away."""

    async def SumOutcomes(self, request, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")


@asynccontextmanager
async def serving(peers, activities=ExperimentActivities):
    server = grpc.aio.server()
    traffic_service_pb2_grpc.add_TrafficServiceServicer_to_server(peers, server)
    evidence_service_pb2_grpc.add_EvidenceServiceServicer_to_server(peers, server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(peers, server)
    monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server(peers, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    peers_by_name = dict.fromkeys(("gateway", "registry", "monitor"), address)
    channels = Channels("workflows", peers_by_name, MeshDress())
    try:
        yield activities(channels)
    finally:
        await channels.close()
        await server.stop(None)


async def run(activity, message):
    return await ActivityEnvironment().run(activity, message)


def seen(users=5_000, errors=(0, 0)):
    """Return what gateway counted of both arms."""
    return evidence_pb2.Evidence(
        generation=8,
        variants=[
            sticky_variant(v, users, errors=e, first_errors=e, generation=8)
            for v, e in zip((1, 2), errors, strict=True)
        ],
    )


def came(ours: float, count: int = 5_000) -> monitor_pb2.OutcomeSums:
    return monitor_pb2.OutcomeSums(variants=[bought(1, count, 0.25, 0), bought(2, count, ours, 0)])


@pytest.mark.parametrize(
    ("traffic", "version", "problem"),
    [
        (WHOLE, None, "arms[0].version: version 1 of delays is not in the registry"),
        (SPLIT, VERSION, f"model: experiment {ID} has split its traffic"),
        (None, VERSION, "model: nothing of delays is in production yet"),
        (
            traffic_pb2.Traffic(
                generation=3,
                production_version=2,
                weights=[traffic_pb2.Weight(version=2, weight=10_000)],
            ),
            VERSION,
            "control: its version must be in production, which is 2",
        ),
        (
            WHOLE,
            model_pb2.ModelVersion(name="projects/default/models/other/versions/1"),
            "arms[0].version: projects/default/models/other/versions/1 is not a version of delays",
        ),
    ],
)
async def test_what_stands_against_it_is_named(traffic, version, problem):
    async with serving(Peers(traffic, version)) as activities:
        found = await run(activities.check_experiment, SPEC)
    assert found.problems[0] == problem


async def test_a_sound_one_starts_from_the_present_generation():
    async with serving(Peers(WHOLE, VERSION)) as activities:
        found = await run(activities.check_experiment, SPEC)
    assert (found.generation, found.digests, found.problems) == (7, ["sha256:1", "sha256:1"], [])


async def test_a_rollout_is_refused_while_an_experiment_has_the_traffic():
    def rollouts(channels):
        return RolloutActivities(channels, Webhooks([]), CLOCK)

    async with serving(Peers(SPLIT, VERSION), rollouts) as activities:
        found = await run(activities.check_rollout, RolloutSpec("delays", 2, steps=[Step(1_000)]))
    assert found.problems == [
        f"model: experiment {ID} has split its traffic: stop it, or wait for its end"
    ]


async def test_a_split_is_salted_fenced_and_keeps_callers_without_a_key_out():
    peers = Peers(WHOLE)
    arms = [Arm("bold", 2, 5_000), Arm("today", 1, 5_000)]
    split = Split(
        Subject("default", "delays", 1), arms, "split", ID, 7, "", "user-id", ID, "why not"
    )
    async with serving(peers) as activities:
        state = await run(activities.set_split, split)
    sent = peers.asked[0]
    assert (state.generation, state.rollout) == (8, ID)
    assert [(w.version, w.weight) for w in sent.weights] == [(2, 5_000), (1, 5_000)]
    assert (sent.expected_generation, sent.stickiness.header, sent.stickiness.salt) == (
        7,
        "user-id",
        ID,
    )
    assert sent.stickiness.missing_key == traffic_pb2.MISSING_KEY_BASELINE
    assert not sent.HasField("audience")
    of_some = request_of(replace(split, segment=Segment("x-ring", ["beta"])))
    assert of_some.audience == traffic_pb2.Audience(header="x-ring", values=["beta"])


async def test_a_winner_is_stored_once_with_inputs_that_give_it_again():
    peers = Peers(version=VERSION, evidence=seen(), outcomes=came(0.4))
    async with serving(peers) as activities:
        look = await run(activities.judge_experiment, TASK)
        peers.outcomes = came(0.1)  # an attempt that is repeated finds what was stored
        again = await run(activities.judge_experiment, TASK)
    assert (look.verdict, look.winner, look.report) == ("WINNER", "bold", f"{ID}.report")
    assert again == look
    asked = peers.asked[-1]
    assert (asked.rollout, asked.unit) == (ID, monitor_pb2.OUTCOME_UNIT_UNIT)
    stored = peers.stored[look.report]
    assert (stored.kind, stored.candidate_version, stored.baseline_version) == ("experiment", 2, 1)
    assert explanation_of(stored).agrees
    stored.inputs["scores"]["bold"]["total"] = 0.0
    assert not explanation_of(stored).agrees


async def test_before_it_is_due_a_winner_is_no_end_and_harm_is():
    early = replace(TASK, is_due=False)
    peers = Peers(version=VERSION, evidence=seen(), outcomes=came(0.4))
    async with serving(peers) as activities:
        good = await run(activities.judge_experiment, early)
        peers.evidence = seen(2_000, (20, 200))
        bad = await run(activities.judge_experiment, early)
    assert (good.verdict, good.report) == ("WINNER", "")
    assert (bad.verdict, bad.report) == ("HARMFUL", f"{ID}.report")


async def test_without_monitor_the_guard_goes_on_and_only_the_report_fails():
    peers = MutePeers(version=VERSION, evidence=seen())
    async with serving(peers) as activities:
        look = await run(activities.judge_experiment, TASK)
        peers.evidence = seen(2_000, (20, 200))
        harm = await run(activities.judge_experiment, TASK)
        with pytest.raises(Unavailable):
            await run(activities.judge_experiment, replace(TASK, is_last=True))
    assert (look.verdict, look.reason_codes) == ("UNDECIDED", ["NO_OUTCOMES", "MONITOR_AWAY"])
    assert harm.verdict == "HARMFUL"


async def test_accuracy_is_asked_of_the_truth_at_the_controls_threshold():
    spec = replace(SPEC, metric=Metric("accuracy", "truth"), sticky_by="")
    peers = Peers(version=VERSION, evidence=seen(), outcomes=came(0.25))
    async with serving(peers) as activities:
        await run(activities.judge_experiment, replace(TASK, spec=spec))
    asked = peers.asked[-1]
    assert (asked.source, asked.threshold) == (monitor_pb2.OUTCOME_SOURCE_TRUTH, 0.4)
    assert asked.unit == monitor_pb2.OUTCOME_UNIT_CALL
