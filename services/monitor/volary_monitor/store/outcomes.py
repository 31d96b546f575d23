"""What came of predictions: one row a prediction and metric, the first value for good.

Evidence that is looked at again and again must not change behind the looks. So an observation is
the first outcome to arrive of its prediction, or of its unit; later ones change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert
from volary_kit.database import Transaction

from volary_monitor.domain.outcomes import Outcome, Question, Source, Sums, Unit, VariantSums
from volary_monitor.store.predictions import BY_MODEL, JOINED, unnested
from volary_monitor.tables import outcomes, predictions, truths

V, P, T = outcomes.c, predictions.c, truths.c
ADDED = {column.name: column.type for column in V if column.name != "position"}
KEY = ("prediction_id", "metric")
GIVEN = (*KEY, "value", "unit_hash", "known_us")
# What a rollout routed and what came of it are both read whole, so one pass over each joins them.
# Of tables that grow faster than they are analysed Postgres expects one row, and would read all
# predictions of the rollout anew for each outcome: 4 s at 2,500 of them, 16 s at 5,000.
ONE_PASS = sa.select(
    sa.func.set_config("enable_nestloop", "off", True),
    sa.func.set_config("plan_cache_mode", "force_custom_plan", True),
)


@dataclass(frozen=True)
class Recorded:
    """What became of outcomes: new, known already, known already with another value."""

    new: int = 0
    duplicates: int = 0
    conflicting: int = 0


async def record(
    transaction: Transaction, project: str, model: str, given: Sequence[Outcome], now_us: int
) -> Recorded:
    """Store outcomes; of two of one prediction and metric the one that came first stands."""
    first: dict[tuple[str, str], Outcome] = {}
    for each in given:
        first.setdefault((each.prediction_id, each.metric), each)
    common = {"project": project, "model": model, "recorded_us": now_us}
    rows = [common | {name: getattr(each, name) for name in GIVEN} for each in first.values()]
    statement = insert(outcomes).from_select(list(ADDED), unnested(ADDED, rows))
    statement = statement.on_conflict_do_nothing().returning(V.prediction_id, V.metric)
    new = {(row.prediction_id, row.metric) for row in await transaction.execute(statement)}
    stands = await _values(transaction, project, model, rows)
    repeated = len(given) - len(new)
    conflicting = sum(stands[each.prediction_id, each.metric] != each.value for each in given)
    return Recorded(len(new), repeated - conflicting, conflicting)


async def _values(
    transaction: Transaction, project: str, model: str, rows: Sequence[dict[str, Any]]
) -> dict[tuple[str, str], float]:
    named = unnested({name: ADDED[name] for name in KEY}, rows).subquery("named")
    is_named = (V.prediction_id == named.c.prediction_id) & (V.metric == named.c.metric)
    statement = (
        sa.select(V.prediction_id, V.metric, V.value)
        .join_from(outcomes, named, is_named)
        .where(V.project == project, V.model == model)
    )
    found = await transaction.execute(statement)
    return {(row.prediction_id, row.metric): row.value for row in found}


async def summed(transaction: Transaction, project: str, model: str, question: Question) -> Sums:
    """Return the sums by version and generation, over the first outcome of each observation."""
    await transaction.execute(ONE_PASS)
    values = _truth(project, model, question)
    if question.source is Source.RECORDED:
        values = _recorded(project, model, question)
    told = values.subquery("told")
    key: list[sa.ColumnElement[Any]] = [told.c.observed]
    if question.unit is Unit.PER_STEP:
        key.append(told.c.generation)
    first = (
        sa.select(told)
        .where(told.c.observed.is_not(None))
        .ext(distinct_on(*key))
        .order_by(*key, told.c.position)
        .subquery("first")
    )
    whole = await transaction.execute(
        sa.select(
            sa.func.count().label("told"),
            sa.func.count().filter(told.c.observed.is_(None)).label("nobodys"),
        )
    )
    counts = whole.one()
    rows = (await transaction.execute(_summed(first, question))).all()
    return Sums(
        variants=[VariantSums(r.version, r.generation, r.units, r.total, r.squares) for r in rows],
        clipped=sum(row.clipped for row in rows),
        without_unit=counts.nobodys,
        later=counts.told - counts.nobodys - sum(row.units for row in rows),
    )


def _summed(first: sa.Subquery, question: Question) -> sa.Select[*tuple[Any, ...]]:
    width = question.upper - question.lower
    inside = sa.func.least(sa.func.greatest(first.c.value, question.lower), question.upper)
    scaled = (inside - question.lower) / width
    is_outside = (first.c.value < question.lower) | (first.c.value > question.upper)
    generation = sa.literal(0) if question.unit is Unit.UNIT else first.c.generation
    of = (generation, first.c.version)
    return (
        sa.select(
            first.c.version,
            generation.label("generation"),
            sa.func.count().label("units"),
            sa.func.sum(scaled).label("total"),
            sa.func.sum(scaled * scaled).label("squares"),
            sa.func.count().filter(is_outside).label("clipped"),
        )
        .group_by(*of)
        .order_by(*of)
    )


def _routed(project: str, model: str, question: Question) -> sa.ColumnElement[bool]:
    route = P.route.startswith(f"{model}/{question.rollout}/", autoescape=True)
    return (P.project == project) & (P.model == model) & route & ~P.shadow


def _recorded(project: str, model: str, question: Question) -> sa.Select[*tuple[Any, ...]]:
    observed = V.prediction_id if question.unit is Unit.CALL else V.unit_hash
    return (
        sa.select(
            observed.label("observed"),
            V.position,
            V.value,
            P.version,
            sa.cast(sa.func.split_part(P.route, "/", 4), sa.BigInteger).label("generation"),
        )
        .join_from(
            outcomes, predictions, (P.project == V.project) & (P.prediction_id == V.prediction_id)
        )
        .where(_routed(project, model, question))
        .where(V.model == model, V.metric == question.metric, V.recorded_us <= question.as_of_us)
    )


def _truth(project: str, model: str, question: Question) -> sa.Select[*tuple[Any, ...]]:
    """Return one value a prediction whose truth is known, in the order in which it was known."""
    error = P.score - T.label
    is_yes, is_true = P.score >= question.threshold, T.label >= question.threshold
    value = (
        error * error
        if question.metric == "brier"
        else sa.case((is_yes == is_true, 1.0), else_=0.0)
    )
    return (
        sa.select(
            P.prediction_id.label("observed"),
            P.position,
            value.label("value"),
            P.version,
            sa.cast(sa.func.split_part(P.route, "/", 4), sa.BigInteger).label("generation"),
        )
        .join_from(predictions, truths, JOINED)
        .where(_routed(project, model, question), P.tier == BY_MODEL, P.code == 0)
        .where(T.known_us <= question.as_of_us, P.score.is_not(None))
    )
