"""Judged windows, and the drift found in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from volary_kit.database import Transaction
from volary_kit.pages import Page, split_key

from volary_monitor.domain.discovery import Finding
from volary_monitor.domain.windows import Span
from volary_monitor.tables import drift, windows

Row = sa.Row[Any]
W, D = windows.c, drift.c
HISTORY = 64


async def lock(transaction: Transaction, project: str, model: str) -> None:
    """Make judges of one model take turns until they commit."""
    await transaction.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
        {"key": f"volary.monitor.windows.{project}.{model}"},
    )


async def last_end(transaction: Transaction, project: str, model: str, kind: str) -> int | None:
    """Return the end of the newest judged window, None if there is none."""
    return await transaction.scalar(
        sa.select(sa.func.max(W.end_us)).where(
            W.project == project, W.model == model, W.kind == kind
        )
    )


async def add(
    transaction: Transaction, project: str, model: str, kind: str, span: Span, *, bad: bool | None
) -> None:
    """Note that a window was judged."""
    await transaction.execute(
        sa.insert(windows).values(
            project=project,
            model=model,
            kind=kind,
            start_us=span.start_us,
            end_us=span.end_us,
            is_bad=bad,
        )
    )


async def history(transaction: Transaction, project: str, model: str, kind: str) -> list[bool]:
    """Return the judgements that there are, newest first; True is bad."""
    statement = (
        sa.select(W.is_bad)
        .where(W.project == project, W.model == model, W.kind == kind, W.is_bad.is_not(None))
        .order_by(W.start_us.desc())
        .limit(HISTORY)
    )
    return list((await transaction.scalars(statement)).all())


async def add_drift(
    transaction: Transaction,
    project: str,
    model: str,
    span: Span,
    findings: Sequence[tuple[Finding, str]],
) -> None:
    """Store the findings of a window with what each was held against, in their order."""
    rows = [
        {
            "project": project,
            "model": model,
            "start_us": span.start_us,
            "rank": rank,
            "end_us": span.end_us,
            "adjusted_p_value": found.adjusted_p_value,
            "has_drifted": found.has_drifted,
            "reference": reference,
            **vars(found.distance),
        }
        for rank, (found, reference) in enumerate(findings)
    ]
    if rows:
        await transaction.execute(sa.insert(drift).values(rows))


async def page_drift(
    transaction: Transaction, project: str, model: str, page: Page, *, drifted_only: bool
) -> Sequence[Row]:
    """Return findings, newest window first, largest effect first."""
    statement = sa.select(drift).where(D.project == project, D.model == model)
    if drifted_only:
        statement = statement.where(D.has_drifted)
    if page.after is not None:
        start_us, rank = split_key(page.after)
        is_later = (D.start_us == start_us) & (D.rank > int(rank))
        statement = statement.where((D.start_us < start_us) | is_later)
    statement = statement.order_by(D.start_us.desc(), D.rank).limit(page.limit)
    return (await transaction.execute(statement)).all()


def key_of(row: Row) -> str:
    """Return the page key of a finding."""
    return f"{row.start_us}:{row.rank}"
