"""One effect per request id, on a real Postgres."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from volary.registry.v1 import model_pb2, registry_service_pb2
from volary_kit.database import Database
from volary_kit.errors import Aborted, FailedPrecondition, InvalidArgument, Unavailable
from volary_kit.idempotency import PostgresLedger
from volary_kit.testing import ManualClock, new_call
from volary_kit.testing.faults import cut_off

DAY_S = 24 * 3_600


class Models:
    """A service in small: each effect is a row, each reply carries the number of effects."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = ManualClock()
        self.ledger = PostgresLedger(database, self.clock)
        self.calls = 0

    async def create(self, request_id: str, model: str = "a", project: str = "default"):
        return await self.once(request_id, self._create, model, project)

    async def once(self, request_id: str, proceed, model: str = "a", project: str = "default"):
        request = registry_service_pb2.CreateModelRequest(model_id=model, request_id=request_id)
        call = new_call("/volary.registry.v1.RegistryService/CreateModel", project=project)
        return await self.ledger.once(call, request, model_pb2.Model, proceed)

    async def _create(self) -> model_pb2.Model:
        self.calls += 1
        async with self.database.transaction() as transaction:
            await transaction.execute(text("INSERT INTO effects VALUES (:n)"), {"n": self.calls})
        return model_pb2.Model(description=f"effect {self.calls}")

    async def effects(self) -> int:
        async with self.database.read() as transaction:
            return int(await transaction.scalar(text("SELECT count(*) FROM effects")) or 0)


@pytest.fixture
async def models(database: Database) -> Models:
    async with database.transaction() as transaction:
        await transaction.execute(text("CREATE TABLE effects (n int)"))
    return Models(database)


async def test_second_call_gets_the_reply_of_the_first(models: Models):
    first = await models.create("r1")
    assert await models.create("r1") == first
    assert (models.calls, await models.effects()) == (1, 1)


async def test_other_id_project_or_none_is_another_call(models: Models):
    await models.create("r1")
    await models.create("r2")
    await models.create("r1", project="other")
    await models.create("")
    await models.create("")
    assert await models.effects() == 5


async def test_other_body_under_the_same_id_is_refused(models: Models):
    await models.create("r1", model="a")
    with pytest.raises(InvalidArgument) as caught:
        await models.create("r1", model="b")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert await models.effects() == 1


async def test_reply_is_kept_for_a_day(models: Models):
    await models.create("r1")
    models.clock.advance(DAY_S - 1)
    await models.create("r1")
    assert models.calls == 1
    models.clock.advance(1)
    await models.create("r1", model="b")
    assert models.calls == 2
    models.clock.advance(DAY_S)
    assert await models.ledger.forget_expired() == 1
    assert await models.ledger.forget_expired() == 0


async def test_call_while_the_first_runs_is_aborted_with_a_hint(models: Models):
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow() -> model_pb2.Model:
        entered.set()
        await leave.wait()
        return model_pb2.Model(description="slow")

    first = asyncio.create_task(models.once("r1", slow))
    await entered.wait()
    with pytest.raises(Aborted) as caught:
        await models.once("r1", slow)
    assert caught.value.reason == "REQUEST_RUNNING"
    assert caught.value.retry_after_s
    leave.set()
    assert (await first).description == "slow"
    assert (await models.once("r1", slow)).description == "slow"


async def test_failed_call_leaves_neither_effect_nor_reply(models: Models):
    async def half() -> model_pb2.Model:
        async with models.database.transaction() as transaction:
            await transaction.execute(text("INSERT INTO effects VALUES (0)"))
        raise FailedPrecondition("NOT_NOW", "half done")

    with pytest.raises(FailedPrecondition):
        await models.once("r1", half)
    assert await models.effects() == 0
    await models.create("r1")
    assert await models.effects() == 1


async def test_cancelled_call_leaves_nothing_and_does_not_block_the_next(models: Models):
    entered = asyncio.Event()

    async def hangs() -> model_pb2.Model:
        async with models.database.transaction() as transaction:
            await transaction.execute(text("INSERT INTO effects VALUES (0)"))
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(models.once("r1", hangs))
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await models.create("r1")
    assert await models.effects() == 1


async def test_connection_that_dies_midway_leaves_nothing(models: Models):
    async def dies() -> model_pb2.Model:
        async with models.database.transaction() as transaction:
            await transaction.execute(text("INSERT INTO effects VALUES (0)"))
            await cut_off(models.database, transaction)
        return model_pb2.Model()

    with pytest.raises(Unavailable):
        await models.once("r1", dies)
    await models.create("r1")
    assert await models.effects() == 1


async def test_commit_of_unknown_outcome_is_resolved_by_the_key(
    models: Models, monkeypatch: pytest.MonkeyPatch
):
    """The server commits, the answer is lost: the caller still gets the reply."""
    from sqlalchemy.ext.asyncio import AsyncSession

    commit = AsyncSession.commit
    lost: list[bool] = []

    async def commit_and_lose_the_answer(session: AsyncSession) -> None:
        await commit(session)
        if not lost:
            lost.append(True)
            raise ConnectionResetError("the answer is lost")

    monkeypatch.setattr(AsyncSession, "commit", commit_and_lose_the_answer)
    assert (await models.create("r1")).description == "effect 1"
    assert (lost, models.calls, await models.effects()) == ([True], 1, 1)
