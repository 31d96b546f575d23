"""Rows of limits and fallbacks."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import NotFound

from volary_gateway.domain.fallbacks import Fallback, FallbackOutput, FallbackTier
from volary_gateway.domain.limits import Limit, LimitKind, LimitName
from volary_gateway.domain.names import ModelName
from volary_gateway.tables import fallbacks, limits


async def every_limit(transaction: Transaction) -> dict[LimitName, Limit]:
    """Return the limits of all projects."""
    rows = (await transaction.execute(sa.select(limits))).mappings()
    found = [
        Limit(
            LimitName(row["project"], LimitKind(row["kind"]), row["subject"]),
            row["calls_per_s"],
            row["burst"],
            row["updated_us"],
        )
        for row in rows
    ]
    return {limit.name: limit for limit in found}


async def save_limit(transaction: Transaction, limit: Limit) -> None:
    """Write a limit in place of the one before."""
    key = {
        "project": limit.name.project,
        "kind": limit.name.kind.value,
        "subject": limit.name.subject,
    }
    values = {
        "calls_per_s": limit.calls_per_s,
        "burst": limit.burst,
        "updated_us": limit.updated_us,
    }
    statement = insert(limits).values(key | values)
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_=values)
    )


async def remove_limit(transaction: Transaction, name: LimitName) -> None:
    """Remove a limit; raise NotFound `LIMIT_NOT_FOUND`."""
    c = limits.c
    where = (c.project == name.project) & (c.kind == name.kind.value) & (c.subject == name.subject)
    gone = await transaction.execute(sa.delete(limits).where(where).returning(c.subject))
    if gone.first() is None:
        raise NotFound("LIMIT_NOT_FOUND", f"{name} does not exist", metadata={"limit": str(name)})


async def every_fallback(transaction: Transaction) -> dict[ModelName, Fallback]:
    """Return the fallbacks of all models."""
    rows = (await transaction.execute(sa.select(fallbacks))).mappings()
    found = [
        Fallback(
            ModelName(row["project"], row["model"]),
            FallbackTier(row["tier"]),
            tuple(FallbackOutput(name, tuple(values)) for name, values in row["outputs"]),
            row["updated_us"],
            row["cached_us"],
        )
        for row in rows
    ]
    return {fallback.model: fallback for fallback in found}


async def save_fallback(transaction: Transaction, fallback: Fallback) -> None:
    """Write a fallback in place of the one before."""
    key = {"project": fallback.model.project, "model": fallback.model.model}
    values = {
        "tier": fallback.tier.value,
        "outputs": [[output.name, list(output.row)] for output in fallback.outputs],
        "updated_us": fallback.updated_us,
        "cached_us": fallback.cached_us,
    }
    statement = insert(fallbacks).values(key | values)
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_=values)
    )


async def remove_fallback(transaction: Transaction, model: ModelName) -> None:
    """Take a fallback away; a model without one stays as it is."""
    c = fallbacks.c
    where = (c.project == model.project) & (c.model == model.model)
    await transaction.execute(sa.delete(fallbacks).where(where))
