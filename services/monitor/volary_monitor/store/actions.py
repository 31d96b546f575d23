"""Actions on their way: a row for each, one for a call, whatever is delivered twice before it.

A claim puts the next attempt off by a lease, so a process that dies with it leaves it to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_monitor.domain.actions import Decided, Target
from volary_monitor.tables import actions

Row = Any  # of `actions`
WAITING, DONE, DEAD = "waiting", "done", "dead"
A = actions.c


async def add(
    transaction: Transaction, decided: Decided, request_key: str, target: Target, now_us: int
) -> bool:
    """Queue an action; say whether it is new."""
    values = decided.told() | {
        "request_key": request_key or decided.prediction_id,
        "webhook": target.webhook,
        "workflow": target.workflow,
        "task_queue": target.task_queue,
        "state": WAITING,
        "attempts": 0,
        "due_us": now_us,
        "problem": "",
        "create_us": now_us,
    }
    statement = insert(actions).values(values).on_conflict_do_nothing().returning(A.position)
    return await transaction.scalar(statement) is not None


async def claim(transaction: Transaction, now_us: int, lease_us: int, limit: int) -> Sequence[Row]:
    """Return what is due, as this process's own for the length of the lease."""
    due = (
        sa.select(A.position)
        .where(A.state == WAITING, A.due_us <= now_us)
        .order_by(A.due_us)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = (
        sa.update(actions)
        .where(A.position.in_(due.scalar_subquery()))
        .values(due_us=now_us + lease_us, attempts=A.attempts + 1)
        .returning(actions)
    )
    return (await transaction.execute(statement)).all()


async def settle(
    transaction: Transaction, position: int, state: str, problem: str, at_us: int
) -> None:
    """Say how an action ended; what another process settled meanwhile stands."""
    mine = (A.position == position) & (A.state == WAITING)
    values = {"state": state, "problem": problem, "settle_us": at_us}
    await transaction.execute(sa.update(actions).where(mine).values(values))


async def put_off(transaction: Transaction, position: int, problem: str, due_us: int) -> None:
    """Try an action again later."""
    mine = (A.position == position) & (A.state == WAITING)
    await transaction.execute(sa.update(actions).where(mine).values(problem=problem, due_us=due_us))


async def counts(transaction: Transaction) -> dict[str, int]:
    """Return how many actions wait and how many are dead."""
    statement = (
        sa.select(A.state, sa.func.count().label("rows")).where(A.state != DONE).group_by(A.state)
    )
    found = {row.state: row.rows for row in await transaction.execute(statement)}
    return {WAITING: found.get(WAITING, 0), DEAD: found.get(DEAD, 0)}


async def page(
    transaction: Transaction, project: str, model: str, page: Page, *, state: str = ""
) -> Sequence[Row]:
    """Return a model's actions, newest first."""
    statement = sa.select(actions).where(A.project == project, A.model == model)
    if state:
        statement = statement.where(A.state == state)
    if page.after is not None:
        statement = statement.where(A.position < int(page.after))
    statement = statement.order_by(A.position.desc()).limit(page.limit)
    return (await transaction.execute(statement)).all()


async def revived(
    transaction: Transaction, project: str, model: str, prediction_id: str, now_us: int
) -> Row:
    """Return an action, which is tried from the start if it was dead; raise NotFound."""
    mine = (A.project == project) & (A.model == model) & (A.prediction_id == prediction_id)
    values = {"state": WAITING, "attempts": 0, "due_us": now_us, "settle_us": None}
    await transaction.execute(sa.update(actions).where(mine, A.state == DEAD).values(values))
    row = (await transaction.execute(sa.select(actions).where(mine))).first()
    if row is None:
        text = f"no action came of {prediction_id}"
        raise NotFound("ACTION_NOT_FOUND", text, {"prediction_id": prediction_id})
    return row
