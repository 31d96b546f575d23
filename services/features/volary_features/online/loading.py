"""Loading: the online state of a view made from a snapshot, beside what the stream brings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from volary_kit.errors import Aborted, FailedPrecondition

from volary_features.definitions import LiveView
from volary_features.domain.cells import Cells, ids_of
from volary_features.offline.records import Records
from volary_features.online.states import NewRecords, cells_of, last_us, loaded, oldest_of
from volary_features.online.store import Change, Commit, Held, OnlineStore

AT_ONCE = 250  # entities a commit: some megabytes of the hottest ones
ATTEMPTS = 20


@dataclass(frozen=True)
class Loaded:
    """What a view was loaded with."""

    events: int
    entities: int
    watermark_us: int


class Loading:
    """Writes whole views; a stream that is folded meanwhile loses nothing."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store

    async def load(self, live: LiveView, records: Records, known_until_us: int) -> Loaded:
        """Replace all of a view that was known before `known_until_us`, then set its watermark.

        Records that the stream brought and that were known since stay. Until the watermark is
        there, a view that was never loaded, or was lost, does not answer.
        """
        cells = await asyncio.to_thread(_grouped, live, records)
        (held,) = await self._store.read([(live.key, [])])
        _require_not_behind(live, held, known_until_us)
        watermark_us = max(known_until_us, held.watermark_us or known_until_us)
        oldest_us = oldest_of(live.plan, watermark_us)
        others = [
            key async for page in self._store.members(live.key) for key in page if key not in cells
        ]
        keys = [*cells, *others]  # what the snapshot does not name keeps what came since alone
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            await self._replace(live, part, cells, known_until_us, oldest_us)
        await self._store.commit([Commit(live.key, [], watermark_us, creates=True)])
        return Loaded(len(records), len(cells), watermark_us)

    async def _replace(
        self,
        live: LiveView,
        keys: Sequence[str],
        cells: dict[str, Cells],
        known_until_us: int,
        oldest_us: int,
    ) -> None:
        nothing = np.empty(0, dtype=live.plan.layout.dtype)
        for _ in range(ATTEMPTS):
            (held,) = await self._store.read([(live.key, keys)])
            changes = []
            for key, before in zip(keys, held.entities, strict=True):
                new = cells.get(key, nothing)
                after = loaded(live.plan, before, new, known_until_us, oldest_us)
                at_us = last_us(live.plan, after) if after else 0
                changes.append(Change(key, before, after, at_us))
            (is_done,) = await self._store.commit([Commit(live.key, changes)])
            if is_done:
                return
        raise Aborted("ONLINE_STATE_RACED", "other writers were faster", retry_after_s=0.05)


def _require_not_behind(live: LiveView, held: Held, known_until_us: int) -> None:
    """Raise FailedPrecondition when the bound lies in what is in tiles, which cannot be cut."""
    oldest_us = oldest_of(live.plan, held.watermark_us)
    if live.plan.has_watermark and known_until_us < oldest_us:
        raise FailedPrecondition(
            "KNOWN_UNTIL_TOO_OLD",
            f"view {live.key.view} is further: known_until must be {oldest_us} us or later",
            {"feature_view": live.key.view, "oldest_us": str(oldest_us)},
        )


def _grouped(live: LiveView, records: Records) -> dict[str, Cells]:
    """Return the cells of each key of a snapshot."""
    new = NewRecords(
        keys=records.keys.to_list(),
        event_us=records.event_us,
        known_us=records.known_us,
        ids=ids_of(records.record_ids.to_list()),
        columns=records.columns,
    )
    cells = cells_of(live.plan, new)
    codes = records.keys.rank("dense").to_numpy()
    order = np.argsort(codes, kind="stable")
    firsts = np.flatnonzero(np.concatenate(([True], np.diff(codes[order]) > 0)))[: len(order)]
    ends = np.append(firsts[1:], len(order))
    return {
        new.keys[int(order[first])]: cells[order[first:end]]
        for first, end in zip(firsts, ends, strict=True)
    }
