"""Entities as they are held: what to write when records come, by kind of view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volary_features.domain.cells import Cells, Ids, packed, unpacked
from volary_features.domain.instants import FIRST_US, Instants, Mask, oldest_asked_us
from volary_features.domain.plans import RollingPlan, SourcedPlan
from volary_features.domain.quanta import Numbers


@dataclass(frozen=True)
class NewRecords:
    """Records of one view: keys, both instants, ids and columns, one entry a record."""

    keys: Sequence[str]
    event_us: Instants
    known_us: Instants
    ids: Ids
    columns: dict[str, Numbers]


def cells_of(plan: SourcedPlan, records: NewRecords) -> Cells:
    """Return one cell a record."""
    if isinstance(plan, RollingPlan):
        return plan.layout.records(records.known_us, records.ids, records.columns)
    return plan.layout.records(records.event_us, records.known_us, records.ids, records.columns)


def by_key(keys: Sequence[str], cells: Cells) -> dict[str, Cells]:
    """Return the cells of each key."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return {key: cells[mine] for key, mine in places.items()}


def oldest_of(plan: SourcedPlan, watermark_us: int | None) -> int:
    """Return the oldest instant that the state answers for; before all when nothing is loaded."""
    return FIRST_US if watermark_us is None else oldest_asked_us(watermark_us, plan.spec.history)


def is_timely(plan: SourcedPlan, cells: Cells, oldest_us: int) -> Mask:
    """Say which records can still be put in their place: the past before is in tiles."""
    if not plan.has_watermark:
        return np.ones(len(cells), dtype=np.bool_)
    return cells["at"] >= oldest_us


def folded(plan: SourcedPlan, before: bytes, new: Cells, oldest_us: int) -> bytes:
    """Return an entity's bytes with new cells in; one that is there already changes nothing."""
    held, _ = unpacked([before], plan.layout.dtype)
    return _packed(plan, [held, new], oldest_us)


def loaded(
    plan: SourcedPlan, before: bytes, new: Cells, known_until_us: int, oldest_us: int
) -> bytes:
    """Return an entity's bytes with all before `known_until_us` replaced by `new`.

    What came since, by the stream, stays.
    """
    held, _ = unpacked([before], plan.layout.dtype)
    return _packed(plan, [held[held["at"] >= known_until_us], new], oldest_us)


def _packed(plan: SourcedPlan, parts: Sequence[Cells], oldest_us: int) -> bytes:
    if isinstance(plan, RollingPlan):
        cells = plan.layout.merged(parts)
        if oldest_us != FIRST_US:
            cells = plan.layout.compacted(cells, plan.ladder, oldest_us)
    else:
        cells = plan.layout.compacted(plan.layout.merged(parts), oldest_us)
    return packed(cells)


def last_us(plan: SourcedPlan, state: bytes) -> int:
    """Return the last instant that an entity's cells have: when it happened or was known."""
    cells, _ = unpacked([state], plan.layout.dtype)
    return int(np.max(cells["at" if isinstance(plan, RollingPlan) else "event"]))


def expired_us(plan: SourcedPlan, watermark_us: int) -> int | None:
    """Return the instant before which an entity's last must lie for it to go; None: never."""
    oldest_us = oldest_of(plan, watermark_us)
    if isinstance(plan, RollingPlan):
        return oldest_us - plan.ladder.reach_us
    return None if plan.spec.ttl is None else oldest_us - plan.spec.ttl
