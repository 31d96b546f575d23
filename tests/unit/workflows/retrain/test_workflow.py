"""Retrains, told as stories: what happened is in the result, what was begun is undone."""

from __future__ import annotations

from dataclasses import replace

from volary_workflows.retrain.messages import Retrain
from volary_workflows.rollout.messages import ApprovalPolicy, Command
from volary_workflows.starting import start_rollout

from tests.unit.workflows.rollout.world import BAD, SPEC, World, reached

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


async def test_a_failed_run_ends_it_before_the_gate(time_skipping):
    world = RetrainWorld(train_failure="NAN_LOSS")
    status = await retrained(time_skipping, world)
    assert status.outcome == "FAILED"
    assert "NAN_LOSS" in status.reason
    assert status.reason.startswith("TRAINING")
    assert world.gates == []


async def test_cancelling_stops_the_run(time_skipping):
    world = RetrainWorld(is_training_endless=True)
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await world.is_training.wait()
        await handle.cancel()
        status = await handle.result()
    assert (status.outcome, status.reason) == ("CANCELLED", "cancelled while TRAINING")
    assert world.was_training_cancelled


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
