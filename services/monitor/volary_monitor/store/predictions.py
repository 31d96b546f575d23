"""Predictions with what turned out of them; their vectors are in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import TypeEngine
from volary_kit.database import Transaction
from volary_kit.pages import Page

from volary_monitor.domain.windows import Span
from volary_monitor.tables import log_pending, predictions, truths

Row = Any  # of the columns that each query names
P, T = predictions.c, truths.c
ADDED = {column.name: column.type for column in P if column.name != "position"}
BY_MODEL = "model"  # the tier whose answers are the model's own
JOINED = (P.project == T.project) & (P.model == T.model) & (P.subject == T.subject)


async def add(transaction: Transaction, rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Insert predictions; return the position of each that was not there, by event id."""
    statement = insert(predictions).from_select(list(ADDED), unnested(ADDED, rows))
    statement = statement.on_conflict_do_nothing().returning(P.event_id, P.position)
    return {row.event_id: row.position for row in await transaction.execute(statement)}


async def queue(transaction: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    """Queue events for the log."""
    columns = {column.name: column.type for column in log_pending.c}
    statement = insert(log_pending).from_select(list(columns), unnested(columns, rows))
    await transaction.execute(statement)


def unnested(
    columns: Mapping[str, TypeEngine[Any]], rows: Sequence[dict[str, Any]]
) -> sa.Select[Any]:
    """Return rows as one array a column: one short statement, however many rows there are."""
    arrays = [
        sa.bindparam(name, [row[name] for row in rows], sa.ARRAY(kind))
        for name, kind in columns.items()
    ]
    table = sa.func.unnest(*arrays).table_valued(*columns, name="given").render_derived()
    return sa.select(*(table.c[name] for name in columns))


def _counted(project: str, model: str, *, include_shadow: bool) -> sa.ColumnElement[bool]:
    counted = (P.project == project) & (P.model == model) & (P.tier == BY_MODEL) & (P.code == 0)
    return counted if include_shadow else counted & ~P.shadow


def _in_windows(project: str, model: str) -> sa.ColumnElement[bool]:
    # a bare tensor call was asked for no instant and has the wall clock's, which no window of
    # event time may see
    is_about_something = (P.schema_hash != "") | (P.subject != "")
    return _counted(project, model, include_shadow=False) & is_about_something


async def newest_us(transaction: Transaction, project: str, model: str) -> int | None:
    """Return how far event time has come for a model, None without traffic."""
    statement = sa.select(sa.func.max(P.event_us)).where(_in_windows(project, model))
    return await transaction.scalar(statement)


async def window_starts(
    transaction: Transaction, project: str, model: str, length_us: int, after_us: int | None
) -> list[int]:
    """Return where the windows begin that have predictions, from `after_us` on."""
    start = sa.func.div(P.event_us, length_us) * length_us
    statement = sa.select(start).where(_in_windows(project, model), P.event_us >= 0).distinct()
    if after_us is not None:
        statement = statement.where(P.event_us >= after_us)
    return [int(each) for each in await transaction.scalars(statement)]


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


def _on_route(project: str, model: str, prefix: str) -> sa.ColumnElement[bool]:
    return (P.project == project) & (P.model == model) & P.route.startswith(prefix, autoescape=True)


async def route_span(
    transaction: Transaction, project: str, model: str, prefix: str
) -> tuple[int, int] | None:
    """Return the first and last event time of what went the routes, None when nothing did."""
    statement = sa.select(sa.func.min(P.event_us), sa.func.max(P.event_us))
    found = await transaction.execute(statement.where(_on_route(project, model, prefix)))
    first_us, last_us = found.one()
    return None if first_us is None else (first_us, last_us)


async def route_labels(
    transaction: Transaction, project: str, model: str, prefix: str
) -> Sequence[Row]:
    """Return (subject, label) of what went the routes, as far as it is known."""
    statement = sa.select(P.subject, T.label).select_from(predictions.join(truths, JOINED))
    statement = statement.where(_on_route(project, model, prefix), P.subject != "").distinct()
    return (await transaction.execute(statement)).all()
