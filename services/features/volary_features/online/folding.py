"""Folding: events of sources become cells of entities, effectively once, in the order they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import Counter
from volary.events.v1 import event_pb2
from volary.values.v1 import value_pb2
from volary_kit.errors import Aborted
from volary_kit.timestamps import to_us

from volary_features.definitions import Definitions, LiveView
from volary_features.domain.cells import Cells, id_of
from volary_features.domain.quanta import numbers
from volary_features.online.layout import ViewKey
from volary_features.online.settling import Settling
from volary_features.online.states import (
    NewRecords,
    by_key,
    cells_of,
    expired_us,
    folded,
    is_timely,
    last_us,
    oldest_of,
)
from volary_features.online.store import Change, Commit, Held, OnlineStore

ATTEMPTS = 8
FOLDED = Counter("volary_features_folded_total", "Records folded into a view", ["view"])
LATE = Counter(
    "volary_features_late_total", "Records known too long before the watermark", ["view"]
)


@dataclass(frozen=True)
class _Arrived:
    """What a batch of events brings to one view."""

    live: LiveView
    cells: dict[str, Cells]
    watermark_us: int | None


class Folding:
    """Handles batches of `volary:source_events`.

    A record that comes again is recognised by its id among the cells of its entity, or lies
    before the oldest instant that reads may ask for and is dropped as late: so each counts
    once, and no list of ids has to be kept. Records and watermark of a batch are written
    together per view; the watermark never runs ahead of the records.
    """

    def __init__(self, store: OnlineStore, definitions: Definitions, settling: Settling) -> None:
        self._store = store
        self._definitions = definitions
        self._settling = settling

    async def handle(self, events: Sequence[event_pb2.Event]) -> None:
        """Fold a batch in; raise Aborted when other writers keep being faster."""
        arrived = await self._arrived(events)
        for _ in range(ATTEMPTS):
            if not arrived:
                return
            arrived = await self._attempt(arrived)
        raise Aborted("ONLINE_STATE_RACED", "other writers were faster", retry_after_s=0.05)

    async def _arrived(self, events: Sequence[event_pb2.Event]) -> list[_Arrived]:
        records: dict[tuple[str, str], list[event_pb2.Event]] = {}
        watermarks: dict[tuple[str, str], int] = {}
        for event in events:
            kind = event.WhichOneof("payload")
            if kind == "source_record":
                source = event.project, event.source_record.source
                records.setdefault(source, []).append(event)
            elif kind == "watermark":
                source = event.project, event.watermark.source
                watermark_us = to_us(event.watermark.watermark)
                watermarks[source] = max(watermark_us, watermarks.get(source, watermark_us))
        return [
            _Arrived(live, _cells(live, records.get(source, [])), watermarks.get(source))
            for source in records.keys() | watermarks.keys()
            for live in await self._definitions.live_views(*source)
        ]

    async def _attempt(self, arrived: Sequence[_Arrived]) -> list[_Arrived]:
        """Write what can be written; return what another writer was faster for."""
        held = await self._store.read([(each.live.key, list(each.cells)) for each in arrived])
        commits = [
            await self._commit(each, found) for each, found in zip(arrived, held, strict=True)
        ]
        done = await self._store.commit(commits)
        for each, commit, is_done in zip(arrived, commits, done, strict=True):
            if is_done and commit.watermark_us is not None:
                self._definitions.note_watermark(each.live.key, commit.watermark_us)
        return [each for each, is_done in zip(arrived, done, strict=True) if not is_done]

    async def _commit(self, arrived: _Arrived, held: Held) -> Commit:
        view, changes = arrived.live.key, await _changes(arrived, held)
        before_us, watermark_us = held.watermark_us, arrived.watermark_us
        if before_us is None or watermark_us is None or watermark_us <= before_us:
            return Commit(view, changes)
        if self._settling.holds(view, watermark_us):
            return Commit(view, changes)
        expired = expired_us(arrived.live.plan, watermark_us)
        return Commit(view, changes, watermark_us, expired_us=expired)


async def _changes(arrived: _Arrived, held: Held) -> list[Change]:
    plan, view = arrived.live.plan, arrived.live.key
    oldest_us = oldest_of(plan, held.watermark_us)
    changes = []
    for (key, cells), before in zip(arrived.cells.items(), held.entities, strict=True):
        timely = cells[is_timely(plan, cells, oldest_us)]
        _count(view, len(timely), len(cells) - len(timely))
        after = folded(plan, before, timely, oldest_us) if len(timely) else before
        if after != before:
            changes.append(Change(key, before, after, last_us(plan, after) if after else 0))
        await asyncio.sleep(0)  # a batch is tens of milliseconds of work: reads go between
    return changes


def _count(view: ViewKey, timely: int, late: int) -> None:
    FOLDED.labels(view.view).inc(timely)
    if late:
        LATE.labels(view.view).inc(late)


def _cells(live: LiveView, events: Sequence[event_pb2.Event]) -> dict[str, Cells]:
    """Return the cells that records bring to each entity; one without a key belongs to nobody."""
    plan = live.plan
    rows = [event.source_record for event in events]
    keys = [_key(row.record.fields, plan.spec.key) for row in rows]
    kept = [place for place, key in enumerate(keys) if key is not None]
    if not kept:
        return {}
    new = NewRecords(
        keys=[keys[place] or "" for place in kept],
        event_us=np.array([to_us(events[place].event_time) for place in kept], dtype=np.int64),
        known_us=np.array([to_us(events[place].known_at) for place in kept], dtype=np.int64),
        ids=np.array([id_of(rows[place].record_id) for place in kept], dtype=np.uint64),
        columns={
            column: numbers([scalar_of(rows[place].record.fields, column) for place in kept])
            for column in plan.spec.columns()
        },
    )
    return by_key(new.keys, cells_of(plan, new))


def _key(fields: Any, column: str) -> str | None:
    value = scalar_of(fields, column)
    return None if value is None or isinstance(value, float | bool) else str(value)


def scalar_of(fields: Any, name: str) -> str | int | float | bool | None:
    """Return a field of a record; None where it is null, and for an instant, which is no number."""
    return scalar(fields[name]) if name in fields else None


def scalar(value: value_pb2.Value) -> str | int | float | bool | None:
    """Return a value as plain data."""
    kind = value.WhichOneof("kind")
    return None if kind is None or kind == "timestamp_value" else getattr(value, kind)
