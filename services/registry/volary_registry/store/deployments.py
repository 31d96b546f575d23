"""Changes of what serves, one a generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.pages import Page

from volary_registry.tables import deployments

Row = sa.Row[Any]


def _of(project: str, model: str) -> sa.ColumnElement[bool]:
    return (deployments.c.project == project) & (deployments.c.model == model)


async def add(transaction: Transaction, **values: Any) -> bool:
    """Insert a change; False when its generation is known already."""
    statement = (
        insert(deployments)
        .values(**values)
        .on_conflict_do_nothing()
        .returning(deployments.c.generation)
    )
    return (await transaction.execute(statement)).first() is not None


async def several(
    transaction: Transaction, project: str, model: str, generations: Iterable[int]
) -> dict[int, Row]:
    """Return those changes that are known, by generation."""
    statement = sa.select(deployments).where(
        _of(project, model), deployments.c.generation.in_(list(generations))
    )
    return {row.generation: row for row in await transaction.execute(statement)}


async def page(transaction: Transaction, project: str, model: str, page: Page) -> Sequence[Row]:
    """Return changes, newest first."""
    statement = (
        sa.select(deployments).where(_of(project, model)).order_by(deployments.c.generation.desc())
    )
    if page.after is not None:
        statement = statement.where(deployments.c.generation < int(page.after))
    return (await transaction.execute(statement.limit(page.limit))).all()
