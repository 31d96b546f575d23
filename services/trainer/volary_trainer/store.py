"""The queries of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary.trainer.v1.run_pb2 import Run
from volary_kit.database import Transaction
from volary_kit.errors import NotFound
from volary_kit.pages import Page

from volary_trainer.tables import metric_points, runs, trainings

Row = sa.Row[Any]


async def put_training(transaction: Transaction, **values: Any) -> Row:
    """Insert or change a training; the same document hash changes nothing."""
    added = insert(trainings).values(version=1, **values)
    changed = {name: added.excluded[name] for name in values if name not in ("project", "training")}
    statement = added.on_conflict_do_update(
        index_elements=["project", "training"],
        set_={"version": trainings.c.version + 1, **changed},
        where=trainings.c.document_hash != added.excluded.document_hash,
    )
    await transaction.execute(statement)
    return await get_training(transaction, values["project"], values["training"])


async def get_training(transaction: Transaction, project: str, training: str) -> Row:
    """Return a training; raise NotFound."""
    statement = sa.select(trainings).where(
        trainings.c.project == project, trainings.c.training == training
    )
    row = (await transaction.execute(statement)).first()
    if row is None:
        metadata = {"training": training}
        raise NotFound("TRAINING_NOT_FOUND", f"training {training} does not exist", metadata)
    return row


async def page_trainings(transaction: Transaction, project: str, page: Page) -> Sequence[Row]:
    """Return trainings in order of name."""
    statement = sa.select(trainings).where(trainings.c.project == project)
    if page.after is not None:
        statement = statement.where(trainings.c.training > str(page.after))
    return (
        await transaction.execute(statement.order_by(trainings.c.training).limit(page.limit))
    ).all()


async def put_run(transaction: Transaction, project: str, run_id: str, run: Run) -> None:
    """Insert a run or replace what is said of it."""
    values = {"state": run.state, "body": run.SerializeToString()}
    statement = insert(runs).values(
        project=project,
        run=run_id,
        training=run.training,
        training_set=run.training_set,
        **values,
    )
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=["project", "run"], set_=values)
    )


async def get_run(transaction: Transaction, project: str, run_id: str) -> Run:
    """Return a run; raise NotFound."""
    statement = sa.select(runs.c.body).where(runs.c.project == project, runs.c.run == run_id)
    body = await transaction.scalar(statement)
    if body is None:
        raise NotFound("RUN_NOT_FOUND", f"run {run_id} does not exist", {"run": run_id})
    return Run.FromString(body)


async def page_runs(transaction: Transaction, project: str, page: Page) -> Sequence[Row]:
    """Return runs, newest first."""
    statement = sa.select(runs).where(runs.c.project == project)
    if page.after is not None:
        statement = statement.where(runs.c.position < int(page.after))
    return (
        await transaction.execute(statement.order_by(runs.c.position.desc()).limit(page.limit))
    ).all()


async def put_points(
    transaction: Transaction,
    project: str,
    run_id: str,
    step: int,
    metrics: Mapping[str, float],
    time_us: int,
) -> None:
    """Write metric values of one step; an attempt that repeats the step replaces them."""
    if not metrics:
        return
    statement = insert(metric_points).values(
        [
            {
                "project": project,
                "run": run_id,
                "metric": metric,
                "step": step,
                "value": value,
                "time_us": time_us,
            }
            for metric, value in metrics.items()
        ]
    )
    changed = {"value": statement.excluded.value, "time_us": statement.excluded.time_us}
    await transaction.execute(
        statement.on_conflict_do_update(
            index_elements=["project", "run", "metric", "step"], set_=changed
        )
    )


async def points_after(
    transaction: Transaction, project: str, run_id: str, position: int
) -> Sequence[Row]:
    """Return metric values written after a position, in order."""
    statement = (
        sa.select(metric_points)
        .where(
            metric_points.c.project == project,
            metric_points.c.run == run_id,
            metric_points.c.position > position,
        )
        .order_by(metric_points.c.position)
    )
    return (await transaction.execute(statement)).all()
