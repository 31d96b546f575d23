"""What turned out, one row a subject; and how far each source has told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from volary_kit.database import Transaction

from volary_monitor.domain.truth import Truth
from volary_monitor.tables import truths, watermarks

T, W = truths.c, watermarks.c


@dataclass(frozen=True)
class Recorded:
    """What became of truths: new, known already, known already with another label."""

    new: int = 0
    duplicates: int = 0
    corrected: int = 0


async def record(
    transaction: Transaction, project: str, model: str, found: Iterable[Truth]
) -> Recorded:
    """Store truths; of two about one subject the one known later stands.

    Repeating changes nothing.
    """
    given = list(found)
    newest = _newest(given)
    if not newest:
        return Recorded()
    known = await _known(transaction, project, model, list(newest))
    corrected = [
        each
        for each in newest.values()
        if each.subject in known
        and known[each.subject].label != each.label
        and known[each.subject].known_us <= each.known_us
    ]
    new = [each for each in newest.values() if each.subject not in known]
    await _upsert(transaction, project, model, new + corrected)
    return Recorded(len(new), len(given) - len(new) - len(corrected), len(corrected))


async def move(transaction: Transaction, project: str, source: str, watermark_us: int) -> None:
    """Note how far a source has told; it never goes back."""
    statement = insert(watermarks).values(project=project, source=source, watermark_us=watermark_us)
    statement = statement.on_conflict_do_update(
        index_elements=["project", "source"],
        set_={"watermark_us": statement.excluded.watermark_us},
        where=W.watermark_us < statement.excluded.watermark_us,
    )
    await transaction.execute(statement)


async def told_us(transaction: Transaction, project: str, source: str, model: str) -> int | None:
    """Return how far truth is known: the source's watermark, else the newest truth's time."""
    watermark = sa.select(W.watermark_us).where(W.project == project, W.source == source)
    found: int | None = await transaction.scalar(watermark)
    if found is not None:
        return found
    newest = sa.select(sa.func.max(T.known_us)).where(T.project == project, T.model == model)
    return await transaction.scalar(newest)


def _newest(given: list[Truth]) -> dict[str, Truth]:
    newest: dict[str, Truth] = {}
    for each in given:
        other = newest.get(each.subject)
        if other is None or other.known_us <= each.known_us:
            newest[each.subject] = each
    return newest


async def _known(
    transaction: Transaction, project: str, model: str, subjects: list[str]
) -> dict[str, Truth]:
    statement = sa.select(T.subject, T.label, T.known_us).where(
        T.project == project, T.model == model, T.subject == sa.any_(sa.literal(subjects, ARRAY))
    )
    rows = await transaction.execute(statement)
    return {row.subject: Truth(row.subject, row.label, row.known_us) for row in rows}


ARRAY = sa.ARRAY(sa.Text)


async def _upsert(transaction: Transaction, project: str, model: str, rows: list[Truth]) -> None:
    if not rows:
        return
    values = [{"project": project, "model": model, **vars(row)} for row in rows]
    statement = insert(truths).values(values)
    statement = statement.on_conflict_do_update(
        index_elements=["project", "model", "subject"],
        set_={"label": statement.excluded.label, "known_us": statement.excluded.known_us},
        # another replica may have stored a later one in between
        where=T.known_us <= statement.excluded.known_us,
    )
    await transaction.execute(statement)
