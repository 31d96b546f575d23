"""Experiments of weeks, told as stories: whatever happens, production answers at the end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from volary_workflows.experiment.messages import ExperimentStatus
from volary_workflows.rollout.messages import Command

from .world import BROKEN, DAY_S, SPEC, WON, World, ran, serving, started, states

SPLIT = ("split", [(2, 5_000), (1, 5_000)])
WHOLE = ("end", [(1, 10_000)])
ADA = Command("principals/ada")


def lasted_s(status: ExperimentStatus) -> float:
    entered = {change.state: change.at_s for change in status.history}
    return entered["RETURNING"] - entered["RUNNING"]


async def test_a_winner_ends_it_once_it_is_due(time_skipping):
    world = World(look=WON)
    status = await ran(time_skipping, world)
    assert (status.state, status.reason, status.look.winner) == ("CONCLUDED", "WINNER", "bold")
    assert states(status) == [
        "VALIDATING", "LOADING", "STAGING", "RUNNING", "RETURNING", "CONCLUDED",
    ]  # fmt: skip
    assert world.steps == [SPLIT, WHOLE]
    assert 7 * DAY_S <= lasted_s(status) < 7.5 * DAY_S
    assert status.look.report == f"{status.experiment}.report"
    assert world.loaded == set()


async def test_the_split_is_salted_by_the_experiment_and_the_end_is_not_sticky(time_skipping):
    world = World(look=WON)
    status = await ran(time_skipping, world)
    split, end = world.splits
    assert (split.sticky_by, split.salt) == ("user-id", status.experiment)
    assert end.sticky_by == ""
    salted = World(look=WON)
    await ran(time_skipping, salted, replace(SPEC, salt="as-before"))
    assert salted.splits[0].salt == "as-before"


async def test_a_broken_assignment_ends_it_at_once(time_skipping):
    world = World(look=BROKEN)
    status = await ran(time_skipping, world)
    assert (status.state, status.reason) == ("CONCLUDED", "INVALID")
    assert lasted_s(status) < DAY_S
    assert world.steps == [SPLIT, WHOLE]


async def test_its_time_is_over_with_a_last_look_for_the_report(time_skipping):
    world = World()
    status = await ran(time_skipping, world)
    assert (status.state, status.reason) == ("CONCLUDED", "max_duration")
    assert status.look.verdict == "UNDECIDED"
    assert world.tasks[-1].is_last
    assert status.look.report
    assert lasted_s(status) == pytest.approx(14 * DAY_S, abs=60)


async def test_without_monitor_the_traffic_is_back_and_the_report_missing(time_skipping):
    world = World(has_no_monitor=True)
    status = await ran(time_skipping, world)
    assert (status.state, status.look.report) == ("CONCLUDED", "")
    assert world.steps == [SPLIT, WHOLE]


async def test_people_stop_it(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await time_skipping.sleep(timedelta(days=2))
        command = Command("principals/ada", "sale begins")
        await handle.execute_update("stop", command, result_type=ExperimentStatus)
        status = await handle.result()
    assert (status.state, status.reason) == ("STOPPED", "sale begins")
    assert world.steps == [SPLIT, WHOLE]
    assert status.look.report


async def test_break_glass_stands(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await time_skipping.sleep(timedelta(days=1))
        world.write("BREAK_GLASS")
        status = await handle.result()
    assert (status.state, status.reason) == ("STOPPED", "break_glass")
    assert world.steps == [SPLIT]
    assert world.loaded == set()


async def test_a_rollout_that_writes_first_fences_it_off(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await time_skipping.sleep(timedelta(days=1))
        world.write("STEP", "delays-v3-01234567")
        status = await handle.result()
    assert (status.state, status.reason) == ("STOPPED", "traffic_changed_by_others")
    assert world.steps == [SPLIT]


async def test_the_brake_gives_the_traffic_back(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await time_skipping.sleep(timedelta(days=1))
        world.write("BRAKE", world.owner)
        status = await handle.result()
    assert (status.state, status.reason) == ("STOPPED", "brake")
    assert world.steps == [SPLIT, WHOLE]


async def test_lost_replies_write_nothing_twice(time_skipping):
    world = World(look=WON, lose_replies=1)
    await ran(time_skipping, world)
    assert world.steps == [SPLIT, WHOLE]


async def test_a_write_whose_reply_never_comes_is_taken_back(time_skipping):
    world = World(is_mute=True)
    status = await ran(time_skipping, world)
    assert status.state == "FAILED"
    assert "no reply, ever" in status.reason
    assert world.steps == [SPLIT, WHOLE]


async def test_an_arm_that_does_not_answer_sees_no_caller(time_skipping):
    world = World(staging=["it answers otherwise"])
    status = await ran(time_skipping, world)
    assert (status.state, world.splits, world.loaded) == ("FAILED", [], set())
    assert "staging refused bold" in status.reason


async def test_what_the_world_refuses_writes_nothing(time_skipping):
    world = World(problems=["model: rollout delays-v3-01234567 has split its traffic"])
    with pytest.raises(WorkflowFailureError) as failure:
        await ran(time_skipping, world)
    assert failure.value.cause.details[0] == {
        "model": "rollout delays-v3-01234567 has split its traffic"
    }
    assert (world.splits, world.loaded) == ([], set())


async def test_a_stop_that_comes_too_late_is_refused(time_skipping):
    world = World(look=WON, has_no_monitor=True)
    world.look = replace(WON, report="")
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await time_skipping.sleep(timedelta(days=14, minutes=1))
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("stop", ADA, result_type=ExperimentStatus)
        assert "RETURNING" in str(refused.value.cause)
        await handle.result()


async def test_a_long_one_is_a_chain_of_runs_with_one_story(time_skipping):
    world = World(look=WON, looks_until=25)
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, looks_a_run=10)
        status = await handle.result()
        last = time_skipping.client.get_workflow_handle(handle.id)
        described = await last.describe()
    assert described.run_id != handle.first_execution_run_id
    assert (status.state, status.look.winner) == ("CONCLUDED", "bold")
    assert states(status) == [
        "VALIDATING", "LOADING", "STAGING", "RUNNING", "RETURNING", "CONCLUDED",
    ]  # fmt: skip
    assert world.steps == [SPLIT, WHOLE]
    assert {task.experiment for task in world.tasks} == {status.experiment}
    assert len(world.tasks) > 25


async def test_a_stop_reaches_the_run_that_it_has_become(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, looks_a_run=2)
        await time_skipping.sleep(timedelta(days=2))
        now = time_skipping.client.get_workflow_handle(handle.id, result_type=ExperimentStatus)
        await now.execute_update("stop", ADA, result_type=ExperimentStatus)
        status = await handle.result()
    assert status.state == "STOPPED"
    assert world.steps == [SPLIT, WHOLE]
    assert world.loaded == set()


async def test_one_of_a_group_stays_one_run(time_skipping):
    world = World(look=WON, looks_until=8)
    spec = replace(SPEC, group="chained")
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, spec, looks_a_run=2)
        assert (await handle.result()).state == "CONCLUDED"
        described = await time_skipping.client.get_workflow_handle(handle.id).describe()
    assert described.run_id == handle.first_execution_run_id
