"""Verdicts, each under its caller's key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_registry.tables import evaluations

Row = sa.Row[Any]


def _of(project: str, model: str) -> sa.ColumnElement[bool]:
    return (evaluations.c.project == project) & (evaluations.c.model == model)


async def add(transaction: Transaction, **values: Any) -> bool:
    """Insert a verdict; False when its key is taken."""
    statement = (
        insert(evaluations)
        .values(**values)
        .on_conflict_do_nothing()
        .returning(evaluations.c.evaluation)
    )
    return (await transaction.execute(statement)).first() is not None


async def get(transaction: Transaction, project: str, model: str, evaluation: str) -> Row:
    """Return a verdict; raise NotFound."""
    statement = sa.select(evaluations).where(
        _of(project, model), evaluations.c.evaluation == evaluation
    )
    row = (await transaction.execute(statement)).first()
    if row is None:
        metadata = {"model": model, "evaluation": evaluation}
        raise NotFound("EVALUATION_NOT_FOUND", f"evaluation {evaluation} does not exist", metadata)
    return row


async def newest(
    transaction: Transaction, project: str, model: str, version: int, kind: str
) -> Row | None:
    """Return the newest verdict of a kind on a version, None when there is none."""
    statement = (
        sa.select(evaluations)
        .where(
            _of(project, model),
            evaluations.c.candidate_version == version,
            evaluations.c.kind == kind,
        )
        .order_by(evaluations.c.position.desc())
        .limit(1)
    )
    return (await transaction.execute(statement)).first()


async def page(
    transaction: Transaction, project: str, model: str, rollout: str, page: Page
) -> Sequence[Row]:
    """Return verdicts, newest first."""
    statement = (
        sa.select(evaluations).where(_of(project, model)).order_by(evaluations.c.position.desc())
    )
    if rollout:
        statement = statement.where(evaluations.c.rollout == rollout)
    if page.after is not None:
        statement = statement.where(evaluations.c.position < int(page.after))
    return (await transaction.execute(statement.limit(page.limit))).all()
