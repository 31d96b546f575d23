"""Transactions against a real Postgres: commit, rollback, limits, failures."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from volary_kit.database import Database, failure_of, on_commit
from volary_kit.errors import Aborted, DeadlineExceeded, Unavailable
from volary_kit.testing import called
from volary_kit.testing.faults import cut_off


@pytest.fixture
async def notes(database: Database) -> Database:
    async with database.transaction() as transaction:
        await transaction.execute(text("CREATE TABLE notes (id int PRIMARY KEY, body text)"))
    return database


async def add(database: Database, number: int) -> None:
    async with database.transaction() as transaction:
        await transaction.execute(text("INSERT INTO notes VALUES (:id, 'x')"), {"id": number})


async def count(database: Database) -> int:
    async with database.read() as transaction:
        return int(await transaction.scalar(text("SELECT count(*) FROM notes")) or 0)


async def test_block_that_ends_commits_and_calls_back(notes: Database):
    told: list[str] = []
    async with notes.transaction() as transaction:
        await transaction.execute(text("INSERT INTO notes VALUES (1, 'x')"))
        on_commit(transaction, lambda: told.append("committed"))
        assert told == []
    assert told == ["committed"]
    assert await count(notes) == 1


async def test_block_that_raises_leaves_nothing_and_calls_nobody(notes: Database):
    told: list[str] = []
    with pytest.raises(RuntimeError, match="midway"):
        async with notes.transaction() as transaction:
            await transaction.execute(text("INSERT INTO notes VALUES (1, 'x')"))
            on_commit(transaction, lambda: told.append("committed"))
            raise RuntimeError("midway")
    assert await count(notes) == 0
    assert told == []


async def test_constraint_violation_stays_for_the_store_to_read(notes: Database):
    await add(notes, 1)
    with pytest.raises(IntegrityError):
        await add(notes, 1)


async def test_read_cannot_write(notes: Database):
    with pytest.raises(Exception, match="read-only transaction"):
        async with notes.read() as transaction:
            await transaction.execute(text("INSERT INTO notes VALUES (1, 'x')"))


async def test_statement_ends_with_the_call(notes: Database):
    with called(timeout_s=0.2), pytest.raises(DeadlineExceeded):
        async with notes.transaction() as transaction:
            await transaction.execute(text("SELECT pg_sleep(10)"))


async def test_no_statement_is_sent_when_no_time_is_left(notes: Database):
    with called(timeout_s=0.0), pytest.raises(DeadlineExceeded):
        async with notes.transaction():
            pytest.fail("the block ran")


async def test_waiting_for_a_lock_ends_with_the_call(notes: Database):
    await add(notes, 1)
    async with notes.transaction() as first:
        await first.execute(text("UPDATE notes SET body = 'a' WHERE id = 1"))
        with called(timeout_s=0.2), pytest.raises((Aborted, DeadlineExceeded)):
            async with notes.transaction() as second:
                await second.execute(text("UPDATE notes SET body = 'b' WHERE id = 1"))


async def test_backend_killed_in_mid_transaction_is_unavailable(notes: Database):
    with pytest.raises(Unavailable) as caught:
        async with notes.transaction() as transaction:
            await transaction.execute(text("INSERT INTO notes VALUES (1, 'x')"))
            await cut_off(notes, transaction)
            await transaction.execute(text("INSERT INTO notes VALUES (2, 'x')"))
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert await count(notes) == 0


async def test_backend_killed_before_commit_is_outcome_unknown(notes: Database):
    with pytest.raises(Unavailable) as caught:
        async with notes.transaction() as transaction:
            await transaction.execute(text("INSERT INTO notes VALUES (1, 'x')"))
            await cut_off(notes, transaction)
    assert caught.value.reason == "OUTCOME_UNKNOWN"


async def test_unreachable_server_is_unavailable():
    nowhere = Database("postgresql://u:p@127.0.0.1:1/none", "kit")
    with pytest.raises(Unavailable) as caught:
        await nowhere.ping()
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert caught.value.retry_after_s is not None
    await nowhere.close()


async def test_deadlock_is_aborted(notes: Database):
    await add(notes, 1)
    await add(notes, 2)
    met = asyncio.Barrier(2)

    async def update(first: int, second: int) -> None:
        async with notes.transaction() as transaction:
            statement = text("UPDATE notes SET body = 'y' WHERE id = :id")
            await transaction.execute(statement, {"id": first})
            await met.wait()
            await transaction.execute(statement, {"id": second})

    outcomes = await asyncio.gather(update(1, 2), update(2, 1), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Aborted", "NoneType"]


async def test_nested_transaction_of_an_enlisting_block_is_a_savepoint(notes: Database):
    async with notes.enlisting():
        await add(notes, 1)
        with pytest.raises(IntegrityError):
            await add(notes, 1)
        await add(notes, 2)
        assert await count(notes) == 2  # a read joins, too
    assert await count(notes) == 2


async def test_enlisting_block_that_raises_takes_the_nested_with_it(notes: Database):
    with pytest.raises(RuntimeError):
        async with notes.enlisting():
            await add(notes, 1)
            raise RuntimeError("after the nested block")
    assert await count(notes) == 0


async def test_another_task_does_not_join(notes: Database):
    async with notes.enlisting():
        await add(notes, 1)
        assert await asyncio.create_task(count(notes)) == 0


def test_every_client_error_of_the_driver_is_unavailable():
    for error in (asyncpg.InternalClientError("x"), asyncpg.InterfaceError("x"), OSError("x")):
        assert isinstance(failure_of(error), Unavailable)
    assert failure_of(ValueError("x")) is None
