"""Predictions with what turned out of them; their vectors are in the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.pages import Page

from volary_monitor.domain.windows import Span
from volary_monitor.tables import log_pending, predictions, truths

Row = sa.Row[Any]
P, T = predictions.c, truths.c
BY_MODEL = "model"  # the tier whose answers are the model's own
JOINED = (P.project == T.project) & (P.model == T.model) & (P.subject == T.subject)


async def add(transaction: Transaction, rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Insert predictions; return the position of each that was not there, by event id."""
    statement = insert(predictions).values(list(rows)).on_conflict_do_nothing()
    new = await transaction.execute(statement.returning(P.event_id, P.position))
    return {row.event_id: row.position for row in new}


async def queue(transaction: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    """Queue events for the log."""
    await transaction.execute(sa.insert(log_pending).values(list(rows)))


def _counted(project: str, model: str, *, include_shadow: bool) -> sa.ColumnElement[bool]:
    counted = (P.project == project) & (P.model == model) & (P.tier == BY_MODEL) & (P.code == 0)
    return counted if include_shadow else counted & ~P.shadow


async def extent(transaction: Transaction, project: str, model: str) -> tuple[int, int] | None:
    """Return the earliest and the newest event time of a model's traffic, None without any."""
    statement = sa.select(sa.func.min(P.event_us), sa.func.max(P.event_us)).where(
        P.project == project, P.model == model, ~P.shadow
    )
    first, last = (await transaction.execute(statement)).one()
    return None if first is None else (first, last)


async def scored(
    transaction: Transaction,
    project: str,
    model: str,
    span: Span | None = None,
    *,
    include_shadow: bool = False,
) -> Sequence[Row]:
    """Return (version, event_us, score, label or null) of the predictions that count."""
    statement = (
        sa.select(P.version, P.event_us, P.score, T.label)
        .select_from(predictions.outerjoin(truths, JOINED))
        .where(_counted(project, model, include_shadow=include_shadow))
    )
    if span is not None:
        statement = statement.where(P.event_us >= span.start_us, P.event_us < span.end_us)
    return (await transaction.execute(statement)).all()


async def page(
    transaction: Transaction,
    project: str,
    model: str,
    page: Page,
    *,
    subject: str = "",
    prediction_id: str = "",
) -> Sequence[Row]:
    """Return predictions with their truth, newest first."""
    statement = (
        sa.select(predictions, T.label, T.known_us.label("label_known_us"))
        .select_from(predictions.outerjoin(truths, JOINED))
        .where(P.project == project, P.model == model)
        .order_by(P.position.desc())
    )
    if subject:
        statement = statement.where(P.subject == subject)
    if prediction_id:
        statement = statement.where(P.prediction_id == prediction_id)
    if page.after is not None:
        statement = statement.where(P.position < int(page.after))
    return (await transaction.execute(statement.limit(page.limit))).all()
