"""Rows of the desired set and of the replicas that hold it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction

from volary_gateway.domain.fleet import Desired, Held, Replica, VersionState
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.tables import desired_revision, desired_versions, replicas, rollout_fences


async def desired(transaction: Transaction) -> Desired:
    """Return the versions that replicas shall hold."""
    rows = await transaction.execute(sa.select(desired_versions))
    revision = await transaction.execute(sa.select(desired_revision.c.revision))
    digests = {
        VersionName(row["project"], row["model"], row["version"]): row["digest"]
        for row in rows.mappings()
    }
    return Desired(revision.scalar_one(), digests)


async def want(transaction: Transaction, version: VersionName, digest: str) -> int:
    """Add a version to the desired set; return its new revision."""
    values = {
        "project": version.project,
        "model": version.model,
        "version": version.version,
        "digest": digest,
    }
    await transaction.execute(insert(desired_versions).values(values).on_conflict_do_nothing())
    return await raise_revision(transaction)


async def let_go(transaction: Transaction, version: VersionName) -> int:
    """Take a version out of the desired set; return its new revision."""
    c = desired_versions.c
    where = (c.project == version.project) & (c.model == version.model)
    await transaction.execute(
        sa.delete(desired_versions).where(where & (c.version == version.version))
    )
    return await raise_revision(transaction)


async def raise_revision(transaction: Transaction) -> int:
    """Say that the desired set is another one; return its new revision."""
    revision = desired_revision.c.revision
    raised = sa.update(desired_revision).values(revision=revision + 1).returning(revision)
    return (await transaction.execute(raised)).scalar_one()


async def claim(transaction: Transaction, model: ModelName, generation: int) -> int:
    """Give what is loaded of a model to a rollout unless a later one has it; return whose it is."""
    held = rollout_fences.c.generation
    statement = insert(rollout_fences).values(
        project=model.project, model=model.model, generation=generation
    )
    claimed = statement.on_conflict_do_update(
        index_elements=["project", "model"],
        set_={"generation": sa.func.greatest(held, statement.excluded.generation)},
    )
    return (await transaction.execute(claimed.returning(held))).scalar_one()


async def known_replicas(transaction: Transaction, lease_until_us: int) -> list[Replica]:
    """Return the replicas that were attached last, under a lease that begins now."""
    rows = await transaction.execute(sa.select(replicas))
    return [_replica(row, lease_until_us) for row in rows.mappings()]


async def save_replica(transaction: Transaction, replica: Replica) -> None:
    """Write what a replica reported."""
    values = {
        "id": replica.id,
        "address": replica.address,
        "incarnation": replica.incarnation,
        "is_draining": replica.is_draining,
        "engine": replica.engine,
        "versions": [_held_row(version, held) for version, held in replica.versions.items()],
    }
    statement = insert(replicas).values(values)
    await transaction.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


async def forget_replica(transaction: Transaction, replica_id: str) -> None:
    """Remove a replica whose lease is over."""
    await transaction.execute(sa.delete(replicas).where(replicas.c.id == replica_id))


def _held_row(version: VersionName, held: Held) -> list[Any]:
    name = [version.project, version.model, version.version]
    return [
        *name,
        held.digest,
        held.state,
        held.error_reason,
        held.error,
        held.backend,
        held.ready_us,
    ]


def _replica(row: sa.RowMapping, lease_until_us: int) -> Replica:
    return Replica(
        id=row["id"],
        address=row["address"],
        incarnation=row["incarnation"],
        is_draining=row["is_draining"],
        engine=row["engine"],
        lease_until_us=lease_until_us,
        versions={
            VersionName(project, model, version): Held(digest, VersionState(state), *more)
            for project, model, version, digest, state, *more in row["versions"]
        },
    )
