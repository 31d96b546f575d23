"""Rows of traffic."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary.events.v1 import event_pb2
from volary_kit import outbox
from volary_kit.database import Database, Transaction
from volary_kit.streams import TRAFFIC_EVENTS

from volary_gateway.domain.names import ModelName
from volary_gateway.domain.traffic import (
    Audience,
    Cause,
    MissingKey,
    Segment,
    Shadow,
    Stickiness,
    Traffic,
    Weight,
)
from volary_gateway.tables import traffic as table


def _write() -> sa.Select[Any]:
    """Return the statement of `write`, which is made once."""
    values = {column.name: sa.bindparam(column.name, type_=column.type) for column in table.c}
    written = (
        insert(table)
        .values(values)
        .on_conflict_do_update(
            index_elements=["project", "model"],
            set_=values,
            where=table.c.generation == sa.bindparam("generation_before", type_=sa.BigInteger),
        )
        .returning(table.c.generation)
    )
    return outbox.published_with(written.cte("written"))


WRITE = _write()


async def lock(transaction: Transaction, model: ModelName) -> tuple[Traffic, str]:
    """Return a model's traffic and the request that wrote it, held until the transaction ends.

    A model without a row is at generation 0; the advisory lock covers it, too.
    """
    await transaction.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 1))"), {"key": str(model)}
    )
    row = (await transaction.execute(sa.select(table).where(_is(model)))).mappings().first()
    return (Traffic(model), "") if row is None else (_traffic(row), row["request_id"])


async def save(transaction: Transaction, traffic: Traffic, request_id: str) -> None:
    """Write a model's traffic."""
    values = _row(traffic) | {"request_id": request_id}
    statement = insert(table).values(values)
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=["project", "model"], set_=values)
    )


async def write(
    database: Database, before: Traffic, after: Traffic, request_id: str, event: event_pb2.Event
) -> bool:
    """Write a model's traffic and its event if the row is as it was before, in one round trip.

    Returns False when it is not: somebody wrote, or a write of our own was never known.
    """
    values = _row(after) | {"request_id": request_id, "generation_before": before.generation}
    values |= outbox.event_values(TRAFFIC_EVENTS, event)
    return bool(await database.at_once(WRITE, values))


async def every(transaction: Transaction) -> list[tuple[Traffic, str]]:
    """Return the traffic of all models, each with the request that wrote it."""
    rows = await transaction.execute(sa.select(table).order_by(table.c.project, table.c.model))
    return [(_traffic(row), row["request_id"]) for row in rows.mappings()]


def _is(model: ModelName) -> sa.ColumnElement[bool]:
    return (table.c.project == model.project) & (table.c.model == model.model)


def _row(traffic: Traffic) -> dict[str, Any]:
    shadow, sticky = traffic.shadow, traffic.stickiness
    return {
        "project": traffic.model.project,
        "model": traffic.model.model,
        "generation": traffic.generation,
        "weights": [[w.version, w.weight] for w in traffic.weights],
        "shadow": None if shadow is None else [shadow.version, shadow.fraction],
        "stickiness": [sticky.header, sticky.salt, sticky.missing_key],
        "rollout": traffic.rollout,
        "step": traffic.step,
        "cause": traffic.cause,
        "principal": traffic.principal,
        "reason": traffic.reason,
        "updated_us": traffic.updated_us,
        "production": traffic.production,
        "previous": traffic.previous,
        "segments": [
            [s.id, s.header, list(s.values), [[w.version, w.weight] for w in s.weights]]
            for s in traffic.segments
        ],
        "audience": _audience_row(traffic.audience),
    }


def _audience_row(audience: Audience | None) -> list[Any] | None:
    return None if audience is None else [audience.header, list(audience.values)]


def _audience(row: list[Any] | None) -> Audience | None:
    return None if row is None else Audience(row[0], tuple(row[1]))


def _traffic(row: sa.RowMapping) -> Traffic:
    header, salt, missing_key = row["stickiness"]
    return Traffic(
        model=ModelName(row["project"], row["model"]),
        generation=row["generation"],
        weights=tuple(Weight(*pair) for pair in row["weights"]),
        shadow=None if row["shadow"] is None else Shadow(*row["shadow"]),
        stickiness=Stickiness(header, salt, MissingKey(missing_key)),
        rollout=row["rollout"],
        step=row["step"],
        cause=Cause(row["cause"]),
        principal=row["principal"],
        reason=row["reason"],
        updated_us=row["updated_us"],
        production=row["production"],
        previous=row["previous"],
        segments=tuple(
            Segment(name, header, tuple(values), tuple(Weight(*pair) for pair in weights))
            for name, header, values, weights in row["segments"]
        ),
        audience=_audience(row["audience"]),
    )
