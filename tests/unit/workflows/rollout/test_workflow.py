"""Rollouts of days, told as stories."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.service import RPCError
from volary_workflows.rollout.messages import (
    ApprovalPolicy,
    Command,
    Progress,
    RolloutStatus,
    Step,
    TrafficStep,
    Transition,
)
from volary_workflows.starting import told

from .world import (
    BAD,
    HOUR_S,
    SPEC,
    TINY,
    UNSURE,
    World,
    reached,
    rolled,
    serving,
    started,
    states,
    until,
)

ADA = Command("principals/ada")
MANUAL = replace(SPEC, approval=ApprovalPolicy("manual", ["principals/ada"], 7 * 24 * HOUR_S))


async def updated(handle, name, command=ADA) -> RolloutStatus:
    return await handle.execute_update(name, command, result_type=RolloutStatus)


async def test_a_good_candidate_is_promoted_step_by_step(time_skipping):
    world = World()
    status = await rolled(time_skipping, world)
    assert status.state == "PROMOTED"
    assert states(status) == [
        "PENDING", "VALIDATING", "LOADING", "STAGING", "SHADOW", "CANARY", "PROGRESSING", "BAKING",
        "PROMOTED",
    ]  # fmt: skip
    assert world.steps == [
        ("shadow", 0),
        ("canary", 1_000),
        ("50", 5_000),
        ("bake", 10_000),
        ("promote", 10_000),
    ]
    assert [change.expected_generation for change in world.changes] == [7, 8, 9, 10, 11]
    assert world.changes[0].shadow == 10_000
    assert [change.production for change in world.changes] == [0, 0, 0, 0, 2]
    assert world.decisions[0].principal == "policy/none"
    entered = {transition.state: transition.at_s for transition in status.history}
    assert entered["PROMOTED"] - entered["SHADOW"] >= (1 + 6 + 12 + 24) * HOUR_S


async def test_request_ids_differ_by_step_and_are_uuids_of_the_first_run(time_skipping):
    world = World(lose_replies=1)
    await rolled(time_skipping, world)
    ids = [change.request_id for change in world.changes]
    assert len(set(ids)) == len(ids) == 5  # the retry after the lost reply wrote nothing twice


@pytest.mark.parametrize("step", ["shadow", "50"])
async def test_a_write_whose_reply_never_comes_is_taken_back(time_skipping, step):
    world = World(mute_step=step)
    status = await rolled(time_skipping, world)
    assert status.state == "ROLLED_BACK"
    assert "no reply, ever" in status.reason
    assert [name for name, _ in world.steps][-2:] == [step, "rollback"]
    assert world.changes[-1].expected_generation == world.changes[-2].expected_generation + 1


async def test_a_bad_candidate_goes_back_at_once(time_skipping):
    world = World(looks={"50": BAD})
    status = await rolled(time_skipping, world)
    assert (status.state, status.reason) == ("ROLLED_BACK", "CANDIDATE_WORSE")
    assert world.steps[-1] == ("rollback", 0)
    assert world.changes[-1].cause == "ROLLBACK"
    assert world.production == 1
    assert world.loaded == set()
    assert status.look.verdict == "FAIL"
    assert status.evaluations[-1].startswith(f"{status.rollout}.50.")


async def test_a_shadow_that_fails_never_sees_a_caller(time_skipping):
    world = World(looks={"shadow": BAD})
    status = await rolled(time_skipping, world)
    assert status.state == "ROLLED_BACK"
    assert world.steps == [("shadow", 0), ("rollback", 0)]


async def test_an_interval_with_lost_records_is_given_up_for_a_new_one(time_skipping):
    world = World(lossy={9})
    status = await rolled(time_skipping, world)
    assert status.state == "PROMOTED"
    assert [(step, weight) for step, weight in world.steps if step == "canary"] == [
        ("canary", 1_000),
        ("canary", 1_000),
    ]
    assert [step.generation for step in world.tasks[-1].written][:3] == [8, 9, 10]
    again = [each for each in status.history if "begins again" in each.reason]
    assert [(each.state, each.reason.partition(":")[0]) for each in again] == [("CANARY", "canary")]


async def test_where_records_are_always_lost_nothing_is_promoted(time_skipping):
    status = await rolled(time_skipping, World(lossy=set(range(9, 99))))
    assert (status.state, status.reason) == ("ROLLED_BACK", "evidence_timeout")


async def test_inconclusive_is_extended_and_then_given_up(time_skipping):
    world = World(looks={"canary": UNSURE})
    status = await rolled(time_skipping, world)
    assert (status.state, status.reason) == ("ROLLED_BACK", "evidence_timeout")
    entered = {transition.state: transition.at_s for transition in status.history}
    waited_s = entered["ROLLING_BACK"] - entered["CANARY"]
    assert 4 * 6 * HOUR_S <= waited_s < 4 * 6 * HOUR_S + 2 * HOUR_S


async def test_inconclusive_may_go_back_at_once(time_skipping):
    world = World(looks={"canary": UNSURE})
    status = await rolled(time_skipping, world, replace(SPEC, on_inconclusive="rollback"))
    assert (status.state, status.reason) == ("ROLLED_BACK", "inconclusive: NEEDS_MORE_CALLS")
    entered = {transition.state: transition.at_s for transition in status.history}
    assert entered["ROLLING_BACK"] - entered["CANARY"] < 7 * HOUR_S


async def test_too_few_requests_hold_a_step_that_would_pass(time_skipping):
    spec = replace(SPEC, steps=[Step(1_000, HOUR_S, 10_001)])
    status = await rolled(time_skipping, World(), spec)
    assert status.reason == "evidence_timeout"


async def test_approval_waits_for_days_and_is_recorded(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, MANUAL)
        await reached(handle, "AWAITING_APPROVAL")
        await time_skipping.sleep(timedelta(days=3))
        assert (await reached(handle, "AWAITING_APPROVAL")).state == "AWAITING_APPROVAL"
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await updated(handle, "approve", Command("principals/eve"))
        assert "may not decide" in str(refused.value.cause)
        await updated(handle, "approve")
        status = await handle.result()
    assert (status.state, status.approved_by) == ("PROMOTED", "principals/ada")
    assert (world.decisions[0].approved, world.decisions[0].principal) == (True, "principals/ada")


async def test_rejection_ends_it_before_anything_is_loaded(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, MANUAL)
        await reached(handle, "AWAITING_APPROVAL")
        await updated(handle, "reject")
        status = await handle.result()
    assert (status.state, status.reason) == ("ABORTED", "rejected by principals/ada")
    assert not world.decisions[0].approved
    assert world.changes == []


async def test_approval_expires(time_skipping):
    status = await rolled(time_skipping, World(), MANUAL)
    assert (status.state, status.reason) == ("ABORTED", "approval_expired")
    assert status.history[-1].at_s - status.history[0].at_s >= 7 * 24 * HOUR_S


async def test_an_approved_version_is_not_asked_about_again(time_skipping):
    world = World(approval="APPROVAL_STATE_APPROVED", approved_by="principals/ada")
    status = await rolled(time_skipping, world, MANUAL)
    assert status.state == "PROMOTED"
    assert world.decisions == []


async def test_a_pause_holds_the_weight_and_resume_lets_it_go_on(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        with time_skipping.auto_time_skipping_disabled():
            await reached(handle, "SHADOW")
            with pytest.raises(WorkflowUpdateFailedError):
                await updated(handle, "resume")
            await updated(handle, "pause", Command("principals/ada", "lunch"))
        await time_skipping.sleep(timedelta(days=3))
        paused = await handle.query("status", result_type=RolloutStatus)
        assert (paused.state, paused.paused) == ("SHADOW", "lunch")
        world.looks.clear()
        await updated(handle, "resume")
        status = await handle.result()
    assert status.state == "PROMOTED"


async def test_a_request_said_again_is_answered_and_has_its_effect_once(time_skipping):
    """Its answer was lost, whatever it has led to since; one of another key is another request."""

    def asked(key: str) -> Command:
        return replace(ADA, request_id=key)

    world = World(looks={"canary": UNSURE})
    spec = replace(MANUAL, max_extensions=10_000)
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, spec)
        with time_skipping.auto_time_skipping_disabled():
            await reached(handle, "AWAITING_APPROVAL")
            await updated(handle, "approve", asked("a"))
            await reached(handle, "SHADOW")
            assert len((await updated(handle, "approve", asked("a"))).approvals) == 1
            with pytest.raises(WorkflowUpdateFailedError):
                await updated(handle, "approve", asked("b"))
            assert (await updated(handle, "pause", asked("a"))).paused
            assert not (await updated(handle, "resume", asked("a"))).paused
            assert not (await updated(handle, "pause", asked("a"))).paused
            assert not (await updated(handle, "resume", asked("a"))).paused
            with pytest.raises(WorkflowUpdateFailedError):
                await updated(handle, "resume", asked("b"))
            await told(handle, "abort", asked("a"), RolloutStatus)
            status = await handle.result()
            again = await told(handle, "abort", asked("a"), RolloutStatus)
            with pytest.raises(RPCError):
                await told(handle, "abort", asked("b"), RolloutStatus)
    assert status.state == "ABORTED"
    assert again.heard == status.heard == ["approve/a", "pause/a", "resume/a", "abort/a"]


async def test_a_paused_rollout_is_still_rolled_back(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        with time_skipping.auto_time_skipping_disabled():
            await reached(handle, "SHADOW")
            await updated(handle, "pause")
            world.looks["shadow"] = BAD
        status = await handle.result()
    assert status.state == "ROLLED_BACK"


async def test_a_tiny_certain_regression_pauses_until_somebody_accepts_it(time_skipping):
    world = World(looks={"canary": TINY})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await time_skipping.sleep(timedelta(days=9))
        paused = await handle.query("status", result_type=RolloutStatus)
        assert (paused.state, paused.paused) == ("CANARY", "TINY_REGRESSION")
        await updated(handle, "resume")
        status = await handle.result()
    assert status.state == "PROMOTED"
    assert world.tasks[-1].acknowledged == ["TINY_REGRESSION"]


async def test_skip_step_moves_on_without_evidence(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(days=2))
        assert (await reached(handle, "CANARY")).step == "canary"
        await updated(handle, "skip_step")
        status = await handle.result()
    assert status.state == "PROMOTED"


async def test_abort_goes_back(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        await updated(handle, "abort", Command("principals/ada", "not today"))
        status = await handle.result()
    assert (status.state, status.reason) == ("ABORTED", "not today")
    assert world.steps[-1] == ("rollback", 0)


async def scheduled(handle) -> list[str]:
    """Return the activities that went through Temporal, in order, each with what it was given."""
    events = json.loads((await handle.fetch_history()).to_json())["events"]
    tasks = [each["activityTaskScheduledEventAttributes"] for each in events if is_task(each)]
    return [f"{task['activityType']['name']} {step_of(task)}".strip() for task in tasks]


def is_task(event) -> bool:
    return event["eventType"] == "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED"


def step_of(task) -> str:
    given = json.loads(base64.b64decode(task["input"]["payloads"][0]["data"]))
    return given.get("step", "")


async def test_the_way_back_is_written_without_a_trip_through_temporal(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        await updated(handle, "abort")
        assert (await handle.result()).state == "ABORTED"
        found = await scheduled(handle)
    assert world.steps == [("shadow", 0), ("canary", 1_000), ("rollback", 0)]
    assert "set_traffic canary" in found
    assert "set_traffic rollback" not in found


async def test_a_way_back_that_is_not_written_at_once_is_tried_until_it_is(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        world.lose_replies = 3
        await updated(handle, "abort")
        assert (await handle.result()).state == "ABORTED"
        found = await scheduled(handle)
    assert world.steps == [("shadow", 0), ("canary", 1_000), ("rollback", 0)]
    assert found.count("set_traffic rollback") == 1


async def test_a_rollout_that_was_rolled_back_by_a_lost_word_ends(time_skipping):
    """The write was made, and the task with the abort in it never ended."""
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        rollout = world.rollout
        world.break_glass("ROLLBACK")
        world.rollout = rollout
        status = await handle.result()
    assert (status.state, status.reason) == ("ABORTED", "rolled back by a word that was lost")
    assert world.steps[-1] == ("rollback", 0)


async def test_cancelling_the_workflow_goes_back_too(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        await handle.cancel()
        status = await handle.result()
    assert (status.state, status.reason) == ("ABORTED", "cancelled")
    assert world.steps[-1] == ("rollback", 0)


async def test_what_continues_as_new_goes_on_where_it_was(time_skipping):
    began_s = (await time_skipping.get_current_time()).timestamp()
    progress = Progress(
        state="CANARY",
        rollout="delays-v2-before",
        request_seed=str(uuid.uuid4()),
        stage=4,  # validate, approve, load and shadow lie behind
        stage_began_s=began_s - 5 * HOUR_S,
        baseline=1,
        generation=9,
        written=[TrafficStep("shadow", 8, 0, 10_000), TrafficStep("canary", 9, 1_000)],
        is_loaded=True,
        is_exposed=True,
        history=[Transition("CANARY", began_s - 5 * HOUR_S, "canary")],
    )
    world = World(generation=9, rollout="delays-v2-before", loaded={2})
    async with serving(time_skipping, world) as queue:
        status = await (await started(time_skipping, queue, SPEC, progress)).result()
    assert status.state == "PROMOTED"
    assert world.steps == [("50", 5_000), ("bake", 10_000), ("promote", 10_000)]
    assert [step.step for step in world.tasks[0].written] == ["shadow", "canary"]
    entered = {transition.state: transition.at_s for transition in status.history}
    assert entered["PROGRESSING"] - entered["CANARY"] < 7 * HOUR_S  # the wait did not begin anew


async def test_a_long_rollout_is_many_short_runs_and_one_story(time_skipping):
    world, whole = World(), World()
    expected = await rolled(time_skipping, whole)
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, looks_a_run=5)
        status = await handle.result()
        last = time_skipping.client.get_workflow_handle(handle.id)
        run_id = (await last.describe()).run_id
    assert run_id != handle.first_execution_run_id
    assert states(status) == states(expected)
    assert world.steps == whole.steps
    entered = {transition.state: transition.at_s for transition in status.history}
    assert entered["PROMOTED"] - entered["BAKING"] < 25 * HOUR_S  # no bake began anew
    assert len({task.look for task in world.tasks}) == len(world.tasks)
    assert len({change.request_id for change in world.changes}) == len(world.changes)


async def test_two_rollouts_of_one_candidate_never_share_their_evidence(time_skipping):
    first, second = await rolled(time_skipping, World()), await rolled(time_skipping, World())
    assert first.rollout != second.rollout


async def test_of_two_rollouts_the_later_one_loads_under_the_higher_generation(time_skipping):
    world = World(looks={"canary": BAD})
    for _ in range(2):
        await rolled(time_skipping, world)
    first, let_go, second, let_go_again = world.fences
    assert 0 < first == let_go < second == let_go_again


async def test_cancelled_in_mid_promotion_the_baseline_is_production_again(time_skipping):
    world = World(mute_step="promote")
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        await time_skipping.sleep(timedelta(hours=43))
        with time_skipping.auto_time_skipping_disabled():
            await until(lambda: world.steps[-1][0] == "promote")
            with pytest.raises(WorkflowUpdateFailedError):
                await updated(handle, "abort")
            await handle.cancel()
        status = await handle.result()
    assert status.state == "ABORTED"
    assert world.production == 1


async def test_supersede_makes_way(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        await updated(handle, "supersede")
        status = await handle.result()
    assert status.state == "SUPERSEDED"
    assert world.steps[-1] == ("rollback", 0)


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("BREAK_GLASS", "break_glass"), ("SET", "traffic_changed_by_others")],
)
async def test_whoever_writes_the_traffic_fences_the_rollout_off(time_skipping, cause, reason):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        world.break_glass(cause)
        status = await handle.result()
    assert (status.state, status.reason) == ("ROLLED_BACK", reason)
    assert world.steps[-1][0] == "canary"  # not a write after the fence


async def test_a_stale_write_is_refused_and_ends_the_rollout(time_skipping):
    world = World(is_blind=True)  # no look notices: only the next write does
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue)
        with time_skipping.auto_time_skipping_disabled():
            await reached(handle, "SHADOW")
            await until(lambda: world.changes)
            world.break_glass()
        status = await handle.result()
    assert (status.state, status.reason) == ("ROLLED_BACK", "break_glass")
    assert world.steps == [("shadow", 0)]


async def test_the_brake_makes_it_go_back(time_skipping):
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, max_extensions=10_000))
        await time_skipping.sleep(timedelta(hours=8))
        world.break_glass("BRAKE")
        status = await handle.result()
    assert (status.state, status.reason) == ("ROLLED_BACK", "brake")
    assert world.steps[-1] == ("rollback", 0)
    assert world.changes[-1].expected_generation == world.generation - 1


async def test_a_version_that_replicas_refuse_never_gets_traffic(time_skipping):
    world = World(load_failure="VERSION_REFUSED")
    status = await rolled(time_skipping, world)
    assert status.state == "FAILED"
    assert "VERSION_REFUSED" in status.reason
    assert world.changes == []


async def test_the_first_version_has_nobody_to_share_with(time_skipping):
    world = World(production=0, generation=0)
    status = await rolled(time_skipping, world)
    assert status.state == "PROMOTED"
    assert world.steps == [("bake", 10_000), ("promote", 10_000)]


@pytest.mark.parametrize(
    ("spec", "world", "field"),
    [
        (replace(SPEC, steps=[Step(0)]), World(), "steps[0].weight"),
        (SPEC, World(problems=["candidate: version 2 is not in the registry"]), "candidate"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_field(time_skipping, spec, world, field):
    with pytest.raises(WorkflowFailureError) as failure:
        await rolled(time_skipping, world, spec)
    cause = failure.value.cause
    assert cause.type == "INVALID_SPECIFICATION"
    assert field in cause.details[0]
    assert world.changes == []


def test_the_state_of_a_rollout_is_plain_json():
    from temporalio.converter import DataConverter
    from volary_workflows.rollout.messages import Progress, Rollout, State, Transition

    progress = Progress(state=State.CANARY, history=[Transition(State.CANARY, 1.5)])
    converter = DataConverter.default.payload_converter
    payload = converter.to_payload(Rollout(SPEC, progress))
    assert json.loads(payload.data)["progress"]["state"] == "CANARY"
    assert converter.from_payload(payload, Rollout) == Rollout(SPEC, progress)
