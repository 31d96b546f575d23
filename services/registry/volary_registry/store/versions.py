"""Model versions and decisions on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_registry.tables import model_versions

Row = sa.Row[Any]


def _of(project: str, model: str) -> sa.ColumnElement[bool]:
    return (model_versions.c.project == project) & (model_versions.c.model == model)


async def add(transaction: Transaction, **values: Any) -> None:
    """Insert a version."""
    await transaction.execute(sa.insert(model_versions).values(**values))


async def get(transaction: Transaction, project: str, model: str, version: int) -> Row:
    """Return a version; raise NotFound."""
    found = await several(transaction, project, model, [version])
    if version not in found:
        metadata = {"model": model, "version": str(version)}
        raise NotFound(
            "MODEL_VERSION_NOT_FOUND", f"version {version} of {model} does not exist", metadata
        )
    return found[version]


async def several(
    transaction: Transaction, project: str, model: str, versions: Iterable[int]
) -> dict[int, Row]:
    """Return those versions that exist, by number."""
    statement = sa.select(model_versions).where(
        _of(project, model), model_versions.c.version.in_(list(versions))
    )
    return {row.version: row for row in await transaction.execute(statement)}


async def page(transaction: Transaction, project: str, model: str, page: Page) -> Sequence[Row]:
    """Return versions, newest first."""
    statement = (
        sa.select(model_versions)
        .where(_of(project, model))
        .order_by(model_versions.c.version.desc())
    )
    if page.after is not None:
        statement = statement.where(model_versions.c.version < int(page.after))
    return (await transaction.execute(statement.limit(page.limit))).all()


async def decide(
    transaction: Transaction, project: str, model: str, version: int, **decision: Any
) -> Row | None:
    """Write a decision; None when there is no such version."""
    statement = (
        sa.update(model_versions)
        .where(_of(project, model), model_versions.c.version == version)
        .values(revision=model_versions.c.revision + 1, **decision)
        .returning(model_versions)
    )
    return (await transaction.execute(statement)).first()
