"""Declared policies; the newest version of each is the one that holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from volary_kit.database import Transaction
from volary_kit.documents import canonical, hash_of
from volary_kit.errors import FailedPrecondition, NotFound
from volary_kit.pages import Page

from volary_monitor.domain import policy
from volary_monitor.domain.policy import Monitor
from volary_monitor.tables import policies

Row = sa.Row[Any]
C = policies.c


async def put(
    transaction: Transaction, project: str, data: dict[str, Any], found: Monitor, now_us: int
) -> Row:
    """Store a document as the newest version, unless it is; return what holds now.

    Raises FailedPrecondition when another policy watches the model.
    """
    await transaction.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
        {"key": f"volary.monitor.policies.{project}"},
    )
    await _require_alone(transaction, project, found)
    newest = await find(transaction, project, found.name)
    if newest is not None and newest.document_hash == hash_of(data):
        return newest
    is_older = (C.project == project) & (C.policy == found.name)
    await transaction.execute(sa.update(policies).where(is_older).values(is_newest=False))
    values = {
        "project": project,
        "policy": found.name,
        "version": 1 if newest is None else newest.version + 1,
        "is_newest": True,
        "document": canonical(data),
        "document_hash": hash_of(data),
        "model": found.spec.model,
        "owner": found.owner,
        "on_call": found.on_call,
        "create_us": now_us,
    }
    inserted = await transaction.execute(sa.insert(policies).values(values).returning(policies))
    return inserted.one()


async def _require_alone(transaction: Transaction, project: str, found: Monitor) -> None:
    other = await of_model(transaction, project, found.spec.model)
    if other is not None and other.policy != found.name:
        raise FailedPrecondition(
            "MODEL_IS_WATCHED",
            f"model {found.spec.model} is watched by policy {other.policy}",
            {"model": found.spec.model, "policy": other.policy},
        )


async def find(transaction: Transaction, project: str, name: str) -> Row | None:
    """Return the newest version of a policy, None if there is none."""
    statement = sa.select(policies).where(C.project == project, C.policy == name, C.is_newest)
    return (await transaction.execute(statement)).first()


async def get(transaction: Transaction, project: str, name: str) -> Row:
    """Return the newest version of a policy; raise NotFound."""
    row = await find(transaction, project, name)
    if row is None:
        raise NotFound(
            "MONITOR_POLICY_NOT_FOUND", f"policy {name} does not exist", {"policy": name}
        )
    return row


async def of_model(transaction: Transaction, project: str, model: str) -> Row | None:
    """Return the policy that watches a model, None if none does."""
    statement = sa.select(policies).where(C.project == project, C.model == model, C.is_newest)
    return (await transaction.execute(statement)).first()


async def page(transaction: Transaction, project: str, page: Page) -> Sequence[Row]:
    """Return policies in order of name."""
    statement = sa.select(policies).where(C.project == project, C.is_newest).order_by(C.policy)
    if page.after is not None:
        statement = statement.where(C.policy > str(page.after))
    return (await transaction.execute(statement.limit(page.limit))).all()


async def watching(transaction: Transaction) -> list[tuple[str, Monitor]]:
    """Return every policy that holds, with its project."""
    statement = sa.select(C.project, C.document).where(C.is_newest).order_by(C.project, C.policy)
    rows = await transaction.execute(statement)
    return [(row.project, parsed(row.document)) for row in rows]


@lru_cache(maxsize=256)
def parsed(document: str) -> Monitor:
    """Return a stored document as a policy."""
    return policy.read(json.loads(document))
