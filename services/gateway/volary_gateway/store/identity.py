"""Rows of projects, principals and keys."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction
from volary_kit.errors import AlreadyExists, NotFound

from volary_gateway.domain.identity import ApiKey, Project
from volary_gateway.tables import api_keys, principals, projects


async def add_project(transaction: Transaction, project: Project) -> None:
    """Add a project; raise AlreadyExists."""
    statement = insert(projects).values(asdict(project))
    added = await transaction.execute(statement.on_conflict_do_nothing().returning(projects.c.id))
    if added.first() is None:
        raise AlreadyExists(
            "PROJECT_EXISTS", "the project exists", metadata={"project": project.id}
        )


async def add_key(transaction: Transaction, key: ApiKey) -> None:
    """Add a key, and its project and principal where there are none yet.

    The caller's credential proves that the project is known to whoever issued it.
    """
    tenant = {"id": key.project, "display_name": "", "created_us": key.created_us}
    await transaction.execute(insert(projects).values(tenant).on_conflict_do_nothing())
    holder = {"project": key.project, "id": key.principal, "created_us": key.created_us}
    await transaction.execute(insert(principals).values(holder).on_conflict_do_nothing())
    await transaction.execute(insert(api_keys).values(asdict(key) | {"roles": list(key.roles)}))


async def keys_of(
    transaction: Transaction, project: str, after: tuple[int, str], limit: int
) -> list[ApiKey]:
    """Return keys of a project in order of creation, after a (time, id)."""
    c = api_keys.c
    wanted = (c.project == project) & (sa.tuple_(c.created_us, c.id) > sa.tuple_(*after))
    page = sa.select(api_keys).where(wanted).order_by(c.created_us, c.id).limit(limit)
    return [_key(row) for row in (await transaction.execute(page)).mappings()]


async def revoke(transaction: Transaction, project: str, key_id: str, now_us: int) -> ApiKey:
    """Revoke a key; the first revocation stands. Raises NotFound."""
    c = api_keys.c
    statement = (
        sa.update(api_keys)
        .where((c.project == project) & (c.id == key_id))
        .values(revoked_us=sa.func.coalesce(c.revoked_us, now_us))
        .returning(api_keys)
    )
    row = (await transaction.execute(statement)).mappings().first()
    if row is None:
        raise NotFound("API_KEY_NOT_FOUND", "the key does not exist", metadata={"key": key_id})
    return _key(row)


async def revoked(transaction: Transaction, now_us: int) -> tuple[str, ...]:
    """Return the ids of the keys that are revoked and not yet expired."""
    c = api_keys.c
    wanted = c.revoked_us.is_not(None) & (c.expires_us > now_us)
    rows = await transaction.execute(sa.select(c.id).where(wanted).order_by(c.id))
    return tuple(rows.scalars())


def _key(row: sa.RowMapping) -> ApiKey:
    return ApiKey(
        **(dict(row) | {"roles": tuple(row["roles"]), "token_hash": bytes(row["token_hash"])})
    )
