"""What a plan may ask for beyond its steps: staging, quorum, calendar, blast radius, web hooks."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from volary_workflows.rollout.messages import (
    ApprovalPolicy,
    BlastRadius,
    Command,
    FreezeWindow,
    Notification,
    RolloutStatus,
)

from .world import (
    GOOD,
    HOUR_S,
    SPEC,
    UNSURE,
    World,
    reached,
    rolled,
    serving,
    started,
    states,
)

ADA = Command("principals/ada", "numbers look right")
BOB = Command("principals/bob", "agreed")
TWO = replace(
    SPEC,
    approval=ApprovalPolicy("manual", ["principals/ada", "principals/bob"], quorum=2),
)


async def now_s(environment) -> float:
    return (await environment.get_current_time()).timestamp()


def entered(status) -> dict[str, float]:
    return {transition.state: transition.at_s for transition in status.history}


async def updated(handle, name, command) -> RolloutStatus:
    return await handle.execute_update(name, command, result_type=RolloutStatus)


async def test_a_version_that_staging_refuses_never_gets_traffic(time_skipping):
    world = World(staging=["a: golden rows: output probability comes out differently"])
    status = await rolled(time_skipping, world)
    assert status.state == "FAILED"
    assert status.reason.startswith("staging refused it: a: golden rows")
    assert (world.changes, world.loaded) == ([], set())


async def test_a_shadow_leaves_a_report_and_goes_on_without_one(time_skipping):
    status = await rolled(time_skipping, World())
    assert status.shadow_diff is not None
    assert status.shadow_diff.summary == ["97.00% of 100 pairs agree"]
    assert status.shadow_diff.evaluation == f"{status.rollout}.shadow_diff"
    assert status.shadow_diff.evaluation in status.evaluations
    unwatched = await rolled(time_skipping, World(is_unwatched=True))
    assert (unwatched.state, unwatched.shadow_diff) == ("PROMOTED", None)


async def test_two_people_must_say_yes_and_both_are_recorded(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, TWO)
        with time_skipping.auto_time_skipping_disabled():
            await reached(handle, "AWAITING_APPROVAL")
            first = await updated(handle, "approve", ADA)
            assert (first.state, first.approved_by) == ("AWAITING_APPROVAL", "")
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await updated(handle, "approve", ADA)
            assert "another must" in str(refused.value.cause)
            await updated(handle, "approve", BOB)
        status = await handle.result()
    assert status.state == "PROMOTED"
    assert [(each.principal, each.comment) for each in status.approvals] == [
        ("principals/ada", "numbers look right"),
        ("principals/bob", "agreed"),
    ]
    decision = world.decisions[0]
    assert decision.principal == "principals/ada, principals/bob"
    assert decision.comment == ("principals/ada: numbers look right; principals/bob: agreed")


async def test_who_rejected_and_why_is_stored_and_shown(time_skipping):
    world = World()
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, TWO)
        with time_skipping.auto_time_skipping_disabled():
            await reached(handle, "AWAITING_APPROVAL")
            await updated(handle, "reject", Command("principals/bob", "not before the holidays"))
        status = await handle.result()
    assert status.rejection is not None
    assert (status.rejection.principal, status.rejection.comment) == (
        "principals/bob",
        "not before the holidays",
    )
    assert world.decisions[0].comment == "not before the holidays"


async def test_an_approval_that_is_too_old_is_asked_for_again(time_skipping):
    began_s = await now_s(time_skipping)
    world = World(
        approval="APPROVAL_STATE_APPROVED",
        approved_by="principals/ada",
        approved_at_s=began_s - 3 * 24 * HOUR_S,
    )
    policy = ApprovalPolicy("manual", ["principals/ada"], HOUR_S, valid_s=2 * 24 * HOUR_S)
    stale = await rolled(time_skipping, world, replace(SPEC, approval=policy))
    assert (stale.state, stale.reason) == ("ABORTED", "approval_expired")
    fresh = replace(policy, valid_s=30 * 24 * HOUR_S)
    assert (await rolled(time_skipping, world, replace(SPEC, approval=fresh))).state == "PROMOTED"


async def test_a_candidate_that_must_be_approved_beforehand_is_refused_without(time_skipping):
    spec = replace(SPEC, approval=ApprovalPolicy("required"))
    with pytest.raises(WorkflowFailureError) as failure:
        await rolled(time_skipping, World(), spec)
    assert failure.value.cause.details[0] == {"candidate": "version 2 is not approved by 1"}
    approved = World(approval="APPROVAL_STATE_APPROVED", approved_by="principals/ada")
    assert (await rolled(time_skipping, approved, spec)).state == "PROMOTED"


async def test_a_scheduled_rollout_waits_for_its_time(time_skipping):
    start_at_s = await now_s(time_skipping) + 50 * HOUR_S
    status = await rolled(time_skipping, World(), replace(SPEC, start_at_s=start_at_s))
    assert status.state == "PROMOTED"
    assert entered(status)["VALIDATING"] >= start_at_s
    assert [each.reason for each in status.history[:2]] == ["", "scheduled"]


async def test_after_a_rollback_the_next_rollout_cools_down_first(time_skipping):
    world = World(cooling_s=[6 * HOUR_S])
    status = await rolled(time_skipping, world, replace(SPEC, cooldown_s=6 * HOUR_S))
    assert status.state == "PROMOTED"
    assert states(status)[:4] == ["PENDING", "VALIDATING", "PENDING", "VALIDATING"]
    assert status.history[3].at_s - status.history[2].at_s >= 6 * HOUR_S


async def test_a_freeze_holds_the_weight_and_the_guards_go_on(time_skipping):
    began_s = await now_s(time_skipping)
    frozen = FreezeWindow(began_s + 2 * HOUR_S, began_s + 40 * HOUR_S)  # from within the canary on
    world = World()
    status = await rolled(time_skipping, world, replace(SPEC, freeze=[frozen]))
    assert status.state == "PROMOTED"
    assert entered(status)["CANARY"] < frozen.end_s <= entered(status)["PROGRESSING"]
    assert len([task for task in world.tasks if task.step == "canary"]) > 30  # hourly looks


async def test_a_freeze_that_outlasts_the_extensions_is_not_held_against_the_candidate(
    time_skipping,
):
    began_s = await now_s(time_skipping)
    frozen = FreezeWindow(began_s + 2 * HOUR_S, began_s + 300 * HOUR_S)
    world = World(looks={"canary": UNSURE})
    async with serving(time_skipping, world) as queue:
        handle = await started(time_skipping, queue, replace(SPEC, freeze=[frozen]))
        await time_skipping.sleep(timedelta(hours=302))
        assert (await reached(handle, "CANARY")).state == "CANARY"
        world.looks["canary"] = GOOD
        assert (await handle.result()).state == "PROMOTED"


async def test_a_freeze_before_the_first_write_is_waited_for(time_skipping):
    began_s = await now_s(time_skipping)
    frozen = FreezeWindow(began_s - HOUR_S, began_s + 10 * HOUR_S)
    status = await rolled(time_skipping, World(), replace(SPEC, freeze=[frozen]))
    assert entered(status)["SHADOW"] >= frozen.end_s


async def test_more_exposed_calls_than_declared_turn_it_back(time_skipping):
    world = World(looks={"canary": replace(UNSURE, exposed_calls=501)})
    spec = replace(SPEC, blast_radius=BlastRadius(max_exposed_calls=500))
    status = await rolled(time_skipping, world, spec)
    assert (status.state, status.reason) == ("ROLLED_BACK", "blast_radius")
    within = World(looks={"canary": replace(GOOD, exposed_calls=500)})
    assert (await rolled(time_skipping, within, spec)).state == "PROMOTED"


async def test_web_hooks_hear_of_the_states_that_they_asked_for(time_skipping):
    hooks = [
        Notification("https://hooks.test/all"),
        Notification("https://hooks.test/canary", ["CANARY"]),
    ]
    world = World()
    await rolled(time_skipping, world, replace(SPEC, notify=hooks))
    assert [(notice.url, notice.state) for notice in world.notices] == [
        ("https://hooks.test/canary", "CANARY"),
        ("https://hooks.test/all", "PROMOTED"),
    ]
    assert len({notice.id for notice in world.notices}) == 2


async def test_a_web_hook_that_is_down_stops_nothing(time_skipping):
    hooks = [Notification("https://hooks.test/all", ["CANARY", "PROMOTED"])]
    world = World(is_deaf=True)
    status = await rolled(time_skipping, world, replace(SPEC, notify=hooks))
    assert (status.state, world.notices) == ("PROMOTED", [])


@pytest.mark.timeout(600)  # seconds on a machine of its own, on a busy one as long as it takes
async def test_a_hundred_rollouts_of_days_end_as_they_should(time_skipping):
    """Every fifth goes back in its last step; each keeps a history of its own."""
    world = World()
    async with serving(time_skipping, world) as queue:
        for i in range(100):
            is_bad = i % 5 == 0
            world.looks = {"50": replace(GOOD, verdict="FAIL")} if is_bad else {}
            world.generation, world.production = 7, 1
            spec = replace(SPEC, model=f"model-{i}", poll_s=24 * HOUR_S, shadow=None)
            status = await (await started(time_skipping, queue, spec)).result()
            assert status.state == ("ROLLED_BACK" if is_bad else "PROMOTED")
            assert world.production == (1 if is_bad else 2)
            assert status.history[-1].at_s - status.history[0].at_s >= 18 * HOUR_S
