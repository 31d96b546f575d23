"""Alerts; at most one of a kind fires for a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page, split_key

from volary_monitor.tables import alert_changes, alerts

Row = sa.Row[Any]
A = alerts.c
FIRING, RESOLVED = "firing", "resolved"


async def firing(transaction: Transaction, project: str, model: str, kind: str) -> Row | None:
    """Return the alert of a kind that fires, None if none does."""
    statement = sa.select(alerts).where(
        A.project == project, A.model == model, A.kind == kind, A.state == FIRING
    )
    return (await transaction.execute(statement)).first()


async def add(transaction: Transaction, **values: Any) -> Row:
    """Raise an alert."""
    statement = sa.insert(alerts).values(
        **values, state=FIRING, acknowledged_by="", change=alert_changes.next_value()
    )
    return (await transaction.execute(statement.returning(alerts))).one()


async def change(transaction: Transaction, project: str, alert: str, **values: Any) -> Row:
    """Change an alert; raise NotFound."""
    statement = (
        sa.update(alerts)
        .where(A.project == project, A.alert == alert)
        .values(**values, change=alert_changes.next_value())
        .returning(alerts)
    )
    row = (await transaction.execute(statement)).first()
    if row is None:
        raise NotFound("ALERT_NOT_FOUND", f"alert {alert} does not exist", {"alert": alert})
    return row


async def last_retrain_us(transaction: Transaction, project: str, model: str) -> int | None:
    """Return the end of the window whose alert asked for the latest retrain."""
    statement = sa.select(sa.func.max(A.window_end_us)).where(
        A.project == project, A.model == model, A.triggers_retrain
    )
    return await transaction.scalar(statement)


async def page(
    transaction: Transaction, project: str, page: Page, *, model: str, state: str | None
) -> Sequence[Row]:
    """Return alerts, the one that was raised last first."""
    statement = sa.select(alerts).where(A.project == project)
    if model:
        statement = statement.where(A.model == model)
    if state is not None:
        statement = statement.where(A.state == state)
    if page.after is not None:
        raise_us, alert = split_key(page.after)
        earlier = (A.raise_us == raise_us) & (A.alert < alert)
        statement = statement.where((A.raise_us < raise_us) | earlier)
    statement = statement.order_by(A.raise_us.desc(), A.alert.desc()).limit(page.limit)
    return (await transaction.execute(statement)).all()


def key_of(row: Row) -> str:
    """Return the page key of an alert."""
    return f"{row.raise_us}:{row.alert}"


async def changed_since(
    transaction: Transaction, project: str, after: int, model: str
) -> Sequence[Row]:
    """Return alerts that changed after a change number, in order of change."""
    statement = sa.select(alerts).where(A.project == project, A.change > after)
    if model:
        statement = statement.where(A.model == model)
    return (await transaction.execute(statement.order_by(A.change))).all()
