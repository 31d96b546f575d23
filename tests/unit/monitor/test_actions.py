"""Actions of decisions: each once, to a web hook or as a workflow, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import Counter

import pytest
from monitor_rig import POLICY, START_US, prediction, process
from redis.asyncio import Redis
from sqlalchemy import text
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from volary.monitor.v1 import monitor_service_pb2 as pb
from volary.monitor.v1.monitor_pb2 import (
    ACTION_STATE_DEAD,
    ACTION_STATE_DELIVERED,
    ACTION_STATE_WAITING,
    ActionState,
)
from volary_kit.documents import parse_documents
from volary_kit.errors import InvalidArgument, NotFound
from volary_kit.streams import PREDICTIONS, Publisher
from volary_kit.testing import eventually
from volary_kit.webhooks import SIGNATURE, Webhooks, is_signed
from volary_monitor.action_delivery import ActionDelivery, Delivering
from volary_monitor.domain.actions import Allowed, delay_us
from volary_monitor.domain.policy import read as policy_of
from volary_monitor.store import actions, policies

from tests.unit.receiver import Receiver, receiving

SECRET = "a secret"
LEASE_US, MINUTE_US = 30_000_000, 60_000_000
WITHIN_S = 90.0
ALL = Allowed(lambda _: True, frozenset({"Review@reviews", "Elsewhere@q"}))


def policy(target: str, action: str = "review") -> str:
    return f"{POLICY}  actions: [{{action: {action}, {target}}}]\n"


def advice(subject: str, *, codes: tuple[str, ...] = ("LATE", "WIND"), **more):
    event = prediction(subject, START_US, score=0.9, **({"action": "review"} | more))
    event.prediction.reason_codes.extend(codes)
    event.prediction.request_key = f"call-{subject}"
    return event


def retry(prediction_id: str) -> pb.RetryActionRequest:
    return pb.RetryActionRequest(model="projects/default/models/m", prediction_id=prediction_id)


async def listed(rig, state: ActionState.ValueType = 0, **more) -> pb.ListActionsResponse:
    request = pb.ListActionsRequest(model="projects/default/models/m", state=state, **more)
    return await rig.ask("ListActions", request)


async def no_temporal() -> Client:
    raise AssertionError("nothing asks for Temporal")


def delivery(rig, receiver: Receiver | None, *, temporal=no_temporal, attempts=3):
    origins = [receiver.origin] if receiver else []
    return ActionDelivery(
        rig.database,
        rig.clock,
        Webhooks(origins, SECRET, clock=rig.clock),
        temporal,
        ALL.may_start,
        Delivering(attempts, LEASE_US),
    )


async def states(rig) -> dict[str, str]:
    async with rig.database.read() as transaction:
        rows = await transaction.execute(text("SELECT prediction_id, state FROM actions"))
        return {row.prediction_id: row.state for row in rows}


async def delivered(rig, found: ActionDelivery) -> None:
    while await found.step():
        pass


async def test_an_action_is_posted_once_and_signed(rig):
    with receiving() as receiver:
        await rig.apply(policy(f"webhook: '{receiver.origin}/acts'"))
        found, now_s = delivery(rig, receiver), rig.clock.now_us() / 1e6
        await rig.predictions([advice("a")])
        await rig.predictions([advice("a"), advice("b")])
        await delivered(rig, found)
        rig.clock.advance(seconds=3_600)
        await delivered(rig, found)
    assert sorted(post.key for post in receiver.posted) == ["a.1.0", "b.1.0"]
    post = next(post for post in receiver.posted if post.key == "a.1.0")
    assert post.told == {
        "prediction_id": "a.1.0",
        "project": "default",
        "model": "m",
        "version": 1,
        "action": "review",
        "reason_codes": ["LATE", "WIND"],
        "score": 0.9,
        "subject": "a",
        "event_us": START_US,
    }
    assert is_signed(SECRET, post.headers[SIGNATURE], post.body, now_s)
    assert await states(rig) == {"a.1.0": "done", "b.1.0": "done"}


async def test_an_attempt_that_was_made_again_is_the_same_call(rig):
    again = advice("a")
    again.id, again.prediction.prediction_id = "e-again", "a.1.1"
    with receiving() as receiver:
        await rig.apply(policy(f"webhook: '{receiver.origin}/acts'"))
        await rig.predictions([advice("a")])
        await rig.predictions([again])
        await delivered(rig, delivery(rig, receiver))
    assert [post.key for post in receiver.posted] == ["a.1.0"]


@pytest.mark.parametrize(
    "event",
    [
        advice("a", shadow=True),
        advice("a", code=13),
        advice("a", action=""),
        advice("a", action="nothing"),
        advice("a", model="other"),
    ],
    ids=["a copy", "a failure", "no decision", "another action", "another model"],
)
async def test_what_nobody_was_told_or_nobody_declared_goes_nowhere(rig, event):
    await rig.apply(policy("webhook: 'https://hooks.test/acts'"))
    await rig.predictions([event])
    assert await states(rig) == {}


async def test_a_hook_that_refuses_is_tried_again_later_and_given_up_in_the_end(rig):
    with receiving(503) as receiver:
        await rig.apply(policy(f"webhook: '{receiver.origin}/acts'"))
        await rig.predictions([advice("a")])
        found = delivery(rig, receiver, attempts=3)
        for attempt in (1, 2, 3):
            assert await found.step() == 1
            assert await found.step() == 0  # not before its time
            rig.clock.advance(seconds=delay_us(attempt) / 1e6)
        assert await found.step() == 0
    assert len(receiver.posted) == 3
    assert {post.key for post in receiver.posted} == {"a.1.0"}
    assert await states(rig) == {"a.1.0": "dead"}
    (dead,) = (await listed(rig, ACTION_STATE_DEAD)).actions
    assert (dead.prediction_id, dead.attempts, dead.problem) == ("a.1.0", 3, "WEBHOOK_REFUSED")
    revived = await rig.ask("RetryAction", retry("a.1.0"))
    assert (revived.state, revived.attempts) == (ACTION_STATE_WAITING, 0)
    with pytest.raises(NotFound):
        await rig.ask("RetryAction", retry("b.1.0"))
    with receiving() as other:
        async with rig.database.transaction() as transaction:
            moved = text("UPDATE actions SET webhook = :url")
            await transaction.execute(moved, {"url": f"{other.origin}/acts"})
        await delivered(rig, delivery(rig, other))
    assert [post.key for post in other.posted] == ["a.1.0"]
    assert (await rig.ask("RetryAction", retry("a.1.0"))).state == ACTION_STATE_DELIVERED


async def test_actions_are_listed_newest_first_page_by_page(rig):
    await rig.apply(policy("webhook: 'https://hooks.test/acts'"))
    await rig.predictions([advice(str(i)) for i in range(5)])
    first = await listed(rig, page_size=3)
    last = await listed(rig, page_size=3, page_token=first.next_page_token)
    keys = [each.prediction_id for each in [*first.actions, *last.actions]]
    assert keys == [f"{i}.1.0" for i in reversed(range(5))]
    assert not last.next_page_token
    assert not (await listed(rig, ACTION_STATE_DELIVERED)).actions


async def test_what_is_not_allowed_any_more_is_dead_at_once(rig):
    with receiving() as receiver:
        await rig.apply(policy(f"webhook: '{receiver.origin}/acts'"))
        await rig.predictions([advice("a")])
        assert await delivery(rig, None).step() == 1
    assert (receiver.posted, await states(rig)) == ([], {"a.1.0": "dead"})


async def test_two_processes_deliver_each_action_once(rig):
    with receiving() as receiver:
        await rig.apply(policy(f"webhook: '{receiver.origin}/acts'"))
        await rig.predictions([advice(str(i)) for i in range(100)])
        pair = [delivery(rig, receiver), delivery(rig, receiver)]
        await asyncio.gather(*(delivered(rig, each) for each in pair))
    assert sorted(post.key for post in receiver.posted) == sorted(f"{i}.1.0" for i in range(100))


async def test_what_a_dead_process_had_taken_is_delivered_when_its_lease_is_over(rig):
    with receiving() as receiver:
        await rig.apply(policy(f"webhook: '{receiver.origin}/acts'"))
        await rig.predictions([advice("a")])
        async with rig.database.transaction() as transaction:
            now_us = rig.clock.now_us()
            assert len(await actions.claim(transaction, now_us, LEASE_US, 10)) == 1
        found = delivery(rig, receiver)
        assert await found.step() == 0
        rig.clock.advance(seconds=LEASE_US / 1e6)
        assert await found.step() == 1
    assert [post.key for post in receiver.posted] == ["a.1.0"]


@workflow.defn(name="Review")
class Review:
    @workflow.run
    async def run(self, told: dict) -> dict:
        return told


async def test_a_workflow_is_started_once_under_the_predictions_id(rig, temporal: Client):
    subject = uuid.uuid4().hex

    async def connected() -> Client:
        return temporal

    await rig.apply(policy("workflow: Review, task_queue: reviews"))
    await rig.predictions([advice(subject)])
    found = delivery(rig, None, temporal=connected)
    await delivered(rig, found)
    async with rig.database.transaction() as transaction:  # as if its note had been lost
        await transaction.execute(text("UPDATE actions SET state = 'waiting', due_us = 0"))
    handle = temporal.get_workflow_handle(f"{subject}.1.0")
    first = (await handle.describe()).run_id
    runner = UnsandboxedWorkflowRunner()
    async with Worker(temporal, task_queue="reviews", workflows=[Review], workflow_runner=runner):
        async with asyncio.timeout(WITHIN_S):
            told = await handle.result()
        assert await found.step() == 1
    assert (told["action"], told["reason_codes"]) == ("review", ["LATE", "WIND"])
    assert (await handle.describe()).run_id == first
    assert await states(rig) == {f"{subject}.1.0": "done"}


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("webhook: 'https://elsewhere.test/x'", "webhook"),
        ("workflow: Review, task_queue: elsewhere", "workflow"),
        ("webhook: 'https://hooks.test/x', workflow: Review, task_queue: q", ""),
        ("workflow: Review", ""),
        ("task_queue: q", ""),
        ("webhook: 'https://hooks.test/x'}, {action: review, webhook: 'https://hooks.test/y'", ""),
    ],
)
async def test_a_policy_that_names_another_target_is_refused(rig, target, field):
    rig.handler._allowed = Allowed(Webhooks(["https://hooks.test"]).allows, ALL.may_start)
    with pytest.raises(InvalidArgument) as refused:
        await rig.apply(policy(target))
    if field:
        ((path, _),) = refused.value.violations.items()
        assert path == f"monitor_policy.document.spec.actions[0].{field}"


@pytest.mark.timeout(300)
async def test_a_kill_in_the_middle_loses_no_action(
    make_database, redis: Redis, redis_url: str, tmp_path
):
    """The hook has been told and has not answered when the process is killed: it is told again."""
    database = await make_database("monitor")
    with receiving() as receiver:
        receiver.held = threading.Event()
        more = {
            "VOLARY_MONITOR_WEBHOOK_ORIGINS": f'["{receiver.origin}"]',
            "VOLARY_MONITOR_ACTION_LEASE_S": "2",
        }
        await applied(database, policy(f"webhook: '{receiver.origin}/acts'"))
        events = [advice(str(i)) for i in range(60)]

        async def is_told() -> bool:
            return bool(receiver.posted)

        async def is_done() -> bool:
            async with database.read() as transaction:
                done = text("SELECT count(*) FROM actions WHERE state = 'done'")
                return await transaction.scalar(done) == len(events)

        async with process(database.url, redis_url, tmp_path, more) as first:
            await Publisher(redis).publish(PREDICTIONS, *events[:40])
            await eventually(is_told, within_s=WITHIN_S, what="the first action")
            first.kill()
            await first.wait()
        untold = {post.key for post in receiver.posted}
        receiver.held.set()
        receiver.held = None
        async with process(database.url, redis_url, tmp_path, more):
            await Publisher(redis).publish(PREDICTIONS, *events[20:])
            await eventually(is_done, within_s=WITHIN_S, what="every action")
    told = Counter(post.key for post in receiver.posted)
    assert set(told) == {f"{i}.1.0" for i in range(60)}
    assert all(told[key] >= 2 for key in untold)  # nobody had heard that it was taken


async def applied(database, document: str) -> None:
    """Store a policy as a handler that allows its targets would."""
    (found,) = parse_documents(document, "x")
    async with database.transaction() as transaction:
        read = policy_of(found.data)
        await policies.put(transaction, "default", found.data, read, START_US)
