"""The audit chain of each project."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from volary_kit.database import Transaction

from volary_registry.domain.chain import Fact, Link, link
from volary_registry.tables import audit

BATCH = 10_000


async def append(transaction: Transaction, project: str, fact: Fact) -> None:
    """Add a fact to the chain; writers of one project take turns until they commit."""
    await transaction.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
        {"key": f"volary.audit.{project}"},
    )
    newest = sa.select(audit).where(audit.c.project == project)
    newest = newest.order_by(audit.c.sequence.desc()).limit(1)
    row = (await transaction.execute(newest)).first()
    new = link(fact, None if row is None else _link(row))
    values = {
        "project": project,
        "sequence": new.sequence,
        "action": fact.action,
        "resource": fact.resource,
        "principal": fact.principal,
        "time_us": fact.time_us,
        "request_hash": fact.request_hash,
        "previous_hash": new.previous_hash,
        "hash": new.hash,
    }
    await transaction.execute(sa.insert(audit).values(values))


async def links(transaction: Transaction, project: str) -> AsyncIterator[list[Link]]:
    """Yield the chain in order, in batches."""
    after = 0
    while True:
        statement = sa.select(audit).where(audit.c.project == project, audit.c.sequence > after)
        rows = await transaction.execute(statement.order_by(audit.c.sequence).limit(BATCH))
        batch = [_link(row) for row in rows]
        if not batch:
            return
        yield batch
        after = batch[-1].sequence


def _link(row: sa.Row[Any]) -> Link:
    fact = Fact(row.action, row.resource, row.principal, row.time_us, row.request_hash)
    return Link(row.sequence, fact, row.previous_hash, row.hash)
