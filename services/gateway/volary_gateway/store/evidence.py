"""Rows of evidence: counts are only ever added to."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.sql.dml import ReturningInsert
from volary_kit.database import Transaction

from volary_gateway.domain.completeness import Account
from volary_gateway.domain.evidence import Counts, Variant
from volary_gateway.domain.names import ModelName
from volary_gateway.tables import (
    evidence_accounts,
    evidence_flushes,
    evidence_gaps,
    evidence_latencies,
    evidence_outcomes,
    evidence_users,
    evidence_variants,
)

FLUSHES_KEPT_US = 3_600_000_000  # an unknown outcome is resolved within seconds


@dataclass(frozen=True, slots=True)
class Gap:
    """A generation of a model whose records may not all be here.

    `lost` were found missing; `is_open`: more may be; `is_final`: that can never be known.
    """

    model: ModelName
    generation: int
    lost: int = 0
    is_open: bool = True
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    """Attempts of one outcome, and how many of them were the first of their call."""

    code: int
    tier: str
    attempts: int
    firsts: int


@dataclass(slots=True)
class StoredVariant:
    """The stored counts of one variant."""

    variant: Variant
    first_us: int
    last_us: int
    outcomes: list[StoredOutcome] = field(default_factory=list)
    latencies: list[tuple[int, int]] = field(default_factory=list)
    users: int = 0
    users_with_error: int = 0
    users_first_error: int = 0


async def add(
    transaction: Transaction,
    batch: uuid.UUID,
    counts: Counts,
    now_us: int,
) -> None:
    """Add a batch of counts once: a batch that is already in changes nothing."""
    old = evidence_flushes.c.flushed_us < now_us - FLUSHES_KEPT_US
    await transaction.execute(sa.delete(evidence_flushes).where(old))
    flush = insert(evidence_flushes).values(id=batch, flushed_us=now_us)
    added = await transaction.execute(
        flush.on_conflict_do_nothing().returning(evidence_flushes.c.id)
    )
    if added.first() is None:
        return
    ids = await _variant_ids(transaction, counts)
    await _add_outcomes(transaction, counts, ids)
    await _add_latencies(transaction, counts, ids)
    await _add_users(transaction, counts, ids)


async def _variant_ids(transaction: Transaction, counts: Counts) -> dict[Variant, int]:
    if not counts.times:
        return {}
    rows = [
        _variant_row(variant) | {"first_us": first, "last_us": last}
        for variant, (first, last) in sorted(counts.times.items(), key=lambda pair: pair[0])
    ]
    found = await transaction.execute(ADD_VARIANTS, _columns(rows))
    return {_variant(row): row["id"] for row in found.mappings()}


async def _add_outcomes(
    transaction: Transaction, counts: Counts, ids: Mapping[Variant, int]
) -> None:
    rows = [
        {
            "variant": ids[variant],
            "code": code,
            "tier": tier,
            "attempts": count,
            "firsts": counts.firsts[variant, code, tier],
        }
        for (variant, code, tier), count in counts.outcomes.items()
    ]
    if rows:
        await transaction.execute(ADD_OUTCOMES, _columns(rows))


async def _add_latencies(
    transaction: Transaction, counts: Counts, ids: Mapping[Variant, int]
) -> None:
    rows = [
        {"variant": ids[variant], "bucket": index, "attempts": count}
        for (variant, index), count in counts.latencies.items()
    ]
    if rows:
        await transaction.execute(ADD_LATENCIES, _columns(rows))


async def _add_users(transaction: Transaction, counts: Counts, ids: Mapping[Variant, int]) -> None:
    rows = [
        {"variant": ids[variant], "user_hash": user, "has_error": has_error}
        for (variant, user), has_error in counts.users.items()
    ]
    if rows:
        await transaction.execute(ADD_USERS, _columns(rows))


def _columns(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Return rows by column, as `_inserted` takes them."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _inserted(table: sa.Table, *without: str) -> Insert:
    """Return an insert of any number of rows, each column as one array.

    It is put together and planned once: a list of rows would be, anew, for each number of them.
    """
    columns = [column for column in table.c if column.name not in without]
    arrays = [sa.cast(sa.bindparam(c.name), ARRAY(c.type)) for c in columns]
    names = [column.name for column in columns]
    rows = sa.func.unnest(*arrays).table_valued(*names, name="added").render_derived()
    return insert(table).from_select(names, sa.select(*rows.c))


def _accumulated(table: sa.Table, *counted: str) -> Insert:
    statement = _inserted(table)
    return statement.on_conflict_do_update(
        index_elements=[column.name for column in table.primary_key],
        set_={name: table.c[name] + statement.excluded[name] for name in counted},
    )


def _added_variants() -> ReturningInsert[Any]:
    statement, c = _inserted(evidence_variants, "id"), evidence_variants.c
    return statement.on_conflict_do_update(
        constraint="evidence_variants_once",
        set_={
            "first_us": sa.func.least(c.first_us, statement.excluded.first_us),
            "last_us": sa.func.greatest(c.last_us, statement.excluded.last_us),
        },
    ).returning(evidence_variants)


def _added_users() -> Insert:
    statement = _inserted(evidence_users)
    has_error = evidence_users.c.has_error | statement.excluded.has_error
    return statement.on_conflict_do_update(
        index_elements=["variant", "user_hash"], set_={"has_error": has_error}
    )


def _saved_accounts() -> Insert:
    statement = _inserted(evidence_accounts)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["cluster"],
        set_={"records": new.records, "known_lost": new.known_lost},
    )


def _saved_gaps() -> Insert:
    statement = _inserted(evidence_gaps)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["project", "model", "generation"],
        set_={"lost": new.lost, "is_open": new.is_open, "is_final": new.is_final},
    )


ADD_VARIANTS = _added_variants()
ADD_OUTCOMES = _accumulated(evidence_outcomes, "attempts", "firsts")
ADD_LATENCIES = _accumulated(evidence_latencies, "attempts")
ADD_USERS = _added_users()
SAVE_ACCOUNTS = _saved_accounts()
SAVE_GAPS = _saved_gaps()


async def save_accounts(transaction: Transaction, accounts: Mapping[str, Account]) -> None:
    """Write how many records of each cluster are stored, and how many were found missing."""
    rows: list[dict[str, object]] = [
        {"cluster": cluster, "records": account.records, "known_lost": account.known_lost}
        for cluster, account in sorted(accounts.items())
    ]
    if rows:
        await transaction.execute(SAVE_ACCOUNTS, _columns(rows))


async def accounts(transaction: Transaction) -> dict[str, Account]:
    """Return every cluster's account."""
    rows = await transaction.execute(sa.select(evidence_accounts))
    return {row["cluster"]: Account(row["records"], row["known_lost"]) for row in rows.mappings()}


async def save_gaps(transaction: Transaction, gaps: Iterable[Gap]) -> None:
    """Write what is known of each gap."""
    rows = [
        {
            "project": gap.model.project,
            "model": gap.model.model,
            "generation": gap.generation,
            "lost": gap.lost,
            "is_open": gap.is_open,
            "is_final": gap.is_final,
        }
        for gap in gaps
    ]
    if rows:
        await transaction.execute(SAVE_GAPS, _columns(rows))


async def gaps(transaction: Transaction) -> list[Gap]:
    """Return every gap."""
    rows = await transaction.execute(sa.select(evidence_gaps))
    return [
        Gap(
            ModelName(row["project"], row["model"]),
            row["generation"],
            row["lost"],
            row["is_open"],
            row["is_final"],
        )
        for row in rows.mappings()
    ]


async def of_rollout(
    transaction: Transaction, model: ModelName, rollout: str, from_generation: int
) -> list[StoredVariant]:
    """Return every variant of a rollout, in order of generation, version, shadow."""
    c = evidence_variants.c
    wanted = (
        (c.project == model.project)
        & (c.model == model.model)
        & (c.rollout == rollout)
        & (c.generation >= from_generation)
    )
    order = (c.generation, c.version, c.is_shadow)
    rows = await transaction.execute(sa.select(evidence_variants).where(wanted).order_by(*order))
    found = {
        row["id"]: StoredVariant(_variant(row), row["first_us"], row["last_us"])
        for row in rows.mappings()
    }
    await _read_counts(transaction, found)
    await _read_first_errors(transaction, model, rollout, found)
    return list(found.values())


async def _read_first_errors(
    transaction: Transaction, model: ModelName, rollout: str, found: Mapping[int, StoredVariant]
) -> None:
    """Count each user with an error once a rollout: in the cell of the first one.

    Over both versions: one who erred under the baseline and then moved to the candidate has told
    what there is to tell. Copies are nobody's experience and stay out.
    """
    c, users = evidence_variants.c, evidence_users.c
    of_rollout = (c.project == model.project) & (c.model == model.model) & (c.rollout == rollout)
    first = (
        sa.select(users.variant)
        .join(evidence_variants, c.id == users.variant)
        .where(of_rollout & users.has_error & ~c.is_shadow)
        .distinct(users.user_hash)
        .order_by(users.user_hash, c.generation, c.id)
        .subquery()
    )
    counted = sa.select(first.c.variant, sa.func.count().label("users")).group_by(first.c.variant)
    for row in await transaction.execute(counted):
        if row.variant in found:
            found[row.variant].users_first_error = row.users


async def _read_counts(transaction: Transaction, found: Mapping[int, StoredVariant]) -> None:
    ids = list(found)
    outcomes, latencies, users = evidence_outcomes, evidence_latencies, evidence_users
    ordered = sa.select(outcomes).where(outcomes.c.variant.in_(ids)).order_by("code", "tier")
    for row in await transaction.execute(ordered):
        outcome = StoredOutcome(row.code, row.tier, row.attempts, row.firsts)
        found[row.variant].outcomes.append(outcome)
    for row in await transaction.execute(sa.select(latencies).where(latencies.c.variant.in_(ids))):
        found[row.variant].latencies.append((row.bucket, row.attempts))
    counted = sa.select(
        users.c.variant,
        sa.func.count().label("users"),
        sa.func.count().filter(users.c.has_error).label("with_error"),
    )
    for row in await transaction.execute(
        counted.where(users.c.variant.in_(ids)).group_by(users.c.variant)
    ):
        found[row.variant].users = row.users
        found[row.variant].users_with_error = row.with_error


def _variant_row(variant: Variant) -> dict[str, object]:
    return {
        "project": variant.project,
        "model": variant.model,
        "rollout": variant.rollout,
        "step": variant.step,
        "generation": variant.generation,
        "version": variant.version,
        "is_shadow": variant.is_shadow,
    }


def _variant(row: sa.RowMapping) -> Variant:
    return Variant(
        row["project"],
        row["model"],
        row["rollout"],
        row["step"],
        row["generation"],
        row["version"],
        row["is_shadow"],
    )
