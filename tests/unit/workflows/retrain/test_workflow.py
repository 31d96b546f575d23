"""Retrains, told as stories: what happened is in the result, what was begun is undone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from volary_workflows.retrain.messages import Retrain
from volary_workflows.rollout.messages import ApprovalPolicy, Command
from volary_workflows.starting import start_retrain, start_rollout

from tests.unit.workflows.rollout.world import BAD, SPEC, UNSURE, World, reached, until

from .world import ASKED, DAY_US, PLAN, RetrainWorld, retrained, serving, started


async def test_an_alert_ends_in_a_promotion(time_skipping):
    world = RetrainWorld()
    status = await retrained(time_skipping, world)
    assert (status.outcome, status.stage, status.version) == ("PROMOTED", "DONE", 2)
    assert [task.source for task in world.pulls] == ["planes", "landings"]
    assert {task.until_us for task in world.pulls} == {100 * DAY_US}
    train, held_out = world.builds
    assert (train.start_us, train.end_us, train.known_until_us) == (0, 93 * DAY_US, 93 * DAY_US)
    assert (held_out.start_us, held_out.end_us) == (93 * DAY_US, 100 * DAY_US)
    assert train.snapshots == {"planes": "snapshot-of-planes", "landings": "snapshot-of-landings"}
    assert world.trainings[0].trigger == "alert"
    gate = world.gates[0]
    assert (gate.start_us, gate.end_us, gate.candidate) == (93 * DAY_US, 100 * DAY_US, 2)
    assert status.rollout is not None
    assert status.rollout.candidate == 2
    assert world.rollouts.production == 2


async def test_without_an_instant_it_goes_as_far_as_the_spine_is_known(time_skipping):
    world = RetrainWorld()
    await retrained(time_skipping, world, Retrain("delays"))
    assert world.builds[1].end_us == 90 * DAY_US


async def test_a_candidate_that_the_gate_refuses_is_rejected_and_gets_no_traffic(time_skipping):
    for verdict in ("FAIL", "INCONCLUSIVE"):
        world = RetrainWorld(gate=verdict)
        status = await retrained(time_skipping, world)
        assert (status.outcome, status.reason) == ("REFUSED_BY_GATE", "because")
        decision = world.rollouts.decisions[0]
        assert (decision.approved, decision.principal) == (False, "policy/gate")
        assert decision.subject.version == 2
        assert world.rollouts.changes == []


async def test_a_rollout_that_goes_back_is_told(time_skipping):
    world = RetrainWorld(rollouts=World(looks={"canary": BAD}))
    status = await retrained(time_skipping, world)
    assert (status.outcome, status.reason) == ("NOT_PROMOTED", "CANDIDATE_WORSE")
    assert status.rollout is not None
    assert status.rollout.state == "ROLLED_BACK"


STAGES = {
    "pull_source": ("PULLING", "ingest", "StartPull"),
    "build_training_set": ("BUILDING", "features", "BuildTrainingSet"),
    "train": ("TRAINING", "trainer", "StartRun"),
    "judge_gate": ("EVALUATING", "trainer", "CompareVersions"),
}


@pytest.mark.parametrize("activity", STAGES)
async def test_a_stage_that_fails_leaves_nothing_half(time_skipping, activity):
    world = RetrainWorld(failing=activity, failure="NAN_LOSS")
    status = await retrained(time_skipping, world)
    assert status.outcome == "FAILED"
    assert status.reason.startswith(STAGES[activity][0])
    assert_nothing_is_half(world, status, activity)


@pytest.mark.parametrize("activity", STAGES)
async def test_a_stage_that_is_cancelled_leaves_nothing_half(time_skipping, activity):
    world = RetrainWorld(endless=activity)
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await world.reached.wait()
        await handle.cancel()
        status = await handle.result()
    assert (status.outcome, status.reason) == (
        "CANCELLED",
        f"cancelled while {STAGES[activity][0]}",
    )
    assert world.cancelled == [activity]
    assert_nothing_is_half(world, status, activity)


def assert_nothing_is_half(world, status, activity):
    """The operation has ended, a version without a verdict is rejected, no traffic moved."""
    _, service, method = STAGES[activity]
    assert world.running == {}
    assert [(begun.service, begun.method) for begun in world.abandoned] == [(service, method)]
    assert status.undone[0] == f"operations/{activity}"
    rejected = [each.subject.version for each in world.rollouts.decisions if not each.approved]
    is_registered = activity == "judge_gate"
    assert rejected == ([2] if is_registered else [])
    assert status.undone[1:] == (["version 2 rejected"] if is_registered else [])
    assert world.rollouts.changes == []
    assert world.rollouts.loaded == set()


async def test_a_run_that_was_done_before_it_heard_leaves_a_rejected_version(time_skipping):
    world = RetrainWorld(endless="train", late_version=7)
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await world.reached.wait()
        await handle.cancel()
        status = await handle.result()
    assert (status.outcome, status.version) == ("CANCELLED", 7)
    assert status.undone == ["operations/train", "version 7 rejected"]
    (decision,) = world.rollouts.decisions
    assert (decision.subject.version, decision.approved) == (7, False)
    assert decision.comment == "not judged: cancelled while TRAINING"


async def test_cancelled_in_its_rollout_the_traffic_goes_back(time_skipping):
    world = RetrainWorld(rollouts=World(looks={"canary": UNSURE}))
    plan = replace(PLAN.rollout, max_extensions=1_000)
    world.plan = replace(PLAN, rollout=plan)
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        with time_skipping.auto_time_skipping_disabled():
            await until(lambda: world.rollouts.steps[-1:] == [("canary", 1_000)])
            await handle.cancel()
        status = await handle.result()
    assert status.rollout is not None
    assert (status.rollout.state, status.rollout.reason) == ("ABORTED", "cancelled")
    assert world.rollouts.steps[-1] == ("rollback", 0)
    assert world.rollouts.production == 1
    assert world.rollouts.loaded == set()
    assert not [each for each in world.rollouts.decisions if not each.approved]  # it had passed


async def test_one_cause_is_one_retrain_however_often_it_is_told(time_skipping):
    world = RetrainWorld(endless="train")
    client = time_skipping.client
    async with serving(time_skipping, world) as queue:
        handles = [
            await start_retrain(client, ASKED, cause="drift-1", task_queue=queue) for _ in range(3)
        ]
        assert len({handle.id for handle in handles}) == 1
        await world.reached.wait()
        await handles[0].cancel()
        await handles[0].result()
    assert len(world.trainings) == 1


async def test_it_may_stop_at_a_registered_version(time_skipping):
    world = RetrainWorld()
    status = await retrained(time_skipping, world, replace(ASKED, roll_out=False))
    assert status.outcome == "REGISTERED"
    assert world.rollouts.changes == []


async def test_a_rollout_in_progress_is_left_alone(time_skipping):
    waiting = replace(SPEC, model="busy", approval=ApprovalPolicy("manual"))
    plan = replace(PLAN, model="busy", rollout=replace(PLAN.rollout, model="busy"))
    async with serving(time_skipping, RetrainWorld(plan=plan)) as queue:
        busy = await start_rollout(time_skipping.client, waiting, task_queue=queue)
        with time_skipping.auto_time_skipping_disabled():
            await reached(busy, "AWAITING_APPROVAL")
            status = await (await started(time_skipping, queue)).result()
            await busy.execute_update("abort", Command("principals/ada"))
            await busy.result()
    assert status.outcome == "ROLLOUT_IN_PROGRESS"
    assert "version 2 waits" in status.reason


async def test_a_window_that_leaves_nothing_to_train_on_is_refused(time_skipping):
    world = RetrainWorld(plan=replace(PLAN, start_us=95 * DAY_US))
    status = await retrained(time_skipping, world)
    assert status.outcome == "FAILED"
    assert "nothing to train on" in status.reason
