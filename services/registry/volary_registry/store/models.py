"""Models and their production pointer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_registry.domain.production import Pointer
from volary_registry.tables import models

Row = sa.Row[Any]


def _is(project: str, model: str) -> sa.ColumnElement[bool]:
    return (models.c.project == project) & (models.c.model == model)


def model_not_found(model: str) -> NotFound:
    """Return the error of a model that is not there."""
    return NotFound("MODEL_NOT_FOUND", f"model {model} does not exist", {"model": model})


async def add(transaction: Transaction, **values: Any) -> bool:
    """Insert a model; False when there is one already."""
    statement = insert(models).values(**values).on_conflict_do_nothing().returning(models.c.model)
    return (await transaction.execute(statement)).first() is not None


async def get(transaction: Transaction, project: str, model: str) -> Row:
    """Return a model; raise NotFound."""
    found = await transaction.execute(sa.select(models).where(_is(project, model)))
    row = found.first()
    if row is None:
        raise model_not_found(model)
    return row


async def page(transaction: Transaction, project: str, page: Page) -> Sequence[Row]:
    """Return models in order of name."""
    statement = sa.select(models).where(models.c.project == project).order_by(models.c.model)
    if page.after is not None:
        statement = statement.where(models.c.model > str(page.after))
    return (await transaction.execute(statement.limit(page.limit))).all()


async def update(
    transaction: Transaction, project: str, model: str, revision: int | None, **values: Any
) -> Row | None:
    """Change a model that has this revision (None: any); None when it has another."""
    statement = sa.update(models).where(_is(project, model))
    if revision is not None:
        statement = statement.where(models.c.revision == revision)
    statement = statement.values(revision=models.c.revision + 1, **values).returning(models)
    return (await transaction.execute(statement)).first()


async def next_version(transaction: Transaction, project: str, model: str) -> int:
    """Take the model's next number: its row stays locked until commit, so there is no gap."""
    statement = (
        sa.update(models)
        .where(_is(project, model))
        .values(latest_version=models.c.latest_version + 1)
        .returning(models.c.latest_version)
    )
    number: int | None = await transaction.scalar(statement)
    if number is None:
        raise model_not_found(model)
    return number


async def locked_pointer(transaction: Transaction, project: str, model: str) -> Pointer | None:
    """Return the production pointer and hold its row until commit; None without a model."""
    statement = sa.select(models).where(_is(project, model)).with_for_update()
    row = (await transaction.execute(statement)).first()
    if row is None:
        return None
    return Pointer(
        version=row.production_version,
        previous=row.previous_version,
        since_generation=row.production_generation,
        latest_generation=row.latest_generation,
    )


async def set_pointer(transaction: Transaction, project: str, model: str, pointer: Pointer) -> None:
    """Write the production pointer."""
    await transaction.execute(
        sa.update(models)
        .where(_is(project, model))
        .values(
            production_version=pointer.version,
            previous_version=pointer.previous,
            production_generation=pointer.since_generation,
            latest_generation=pointer.latest_generation,
        )
    )
