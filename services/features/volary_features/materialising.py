"""Materialising: load views from snapshots when asked, and again when the online state is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from volary_kit.calls import act_for
from volary_kit.errors import FailedPrecondition, VolaryError

from volary_features.definitions import Definitions, LiveView, ResolvedSet
from volary_features.offline.records import OWN_COLUMNS, records_of
from volary_features.online.layout import ViewKey
from volary_features.online.loading import Loaded, Loading
from volary_features.online.settling import Settling
from volary_features.online.store import OnlineStore
from volary_features.online.waiting import Watermarks
from volary_features.snapshots import LATEST, Snapshots

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.5
Progress = Callable[[str, int], Awaitable[None]]


@dataclass(frozen=True)
class Materialised:
    """What was loaded, of all views together."""

    events: int = 0
    entities: int = 0
    watermark_us: int | None = None
    snapshots: Sequence[str] = field(default=())


class Materialising:
    """Loads the views of sets; watches that what was loaded stays."""

    def __init__(
        self,
        definitions: Definitions,
        snapshots: Snapshots,
        store: OnlineStore,
        watermarks: Watermarks,
        settling: Settling,
    ) -> None:
        self._definitions = definitions
        self._snapshots = snapshots
        self._store = store
        self._watermarks = watermarks
        self._settling = settling
        self._loading = Loading(store)

    async def run(
        self, resolved: ResolvedSet, known_until_us: int | None, progress: Progress
    ) -> Materialised:
        """Load every view behind a set from the newest snapshots."""
        events, entities, marks, used = 0, 0, [], []
        for name in resolved.plan.sourced:
            live = await self._definitions.live_view(resolved.keys[name])
            await progress(f"loading {name}", events)
            loaded, snapshot = await self._load(live, known_until_us)
            events, entities = events + loaded.events, entities + loaded.entities
            used.append(snapshot)
            if live.plan.has_watermark:
                marks.append(loaded.watermark_us)
        return Materialised(events, entities, min(marks, default=None), sorted(dict.fromkeys(used)))

    async def _load(self, live: LiveView, known_until_us: int | None) -> tuple[Loaded, str]:
        spec, key = live.plan.spec, live.key
        until_us = await self._bound(live, known_until_us)
        columns = list(dict.fromkeys([*OWN_COLUMNS, spec.key, *spec.columns()]))
        bound_us = until_us if live.plan.has_watermark else None
        table = await self._snapshots.table(key.project, spec.source, columns, LATEST, bound_us)
        records = records_of(table.rows, spec.key, spec.columns())
        loaded = await self._loading.load(live, records, until_us)
        await self._definitions.save_watermark(key, loaded.watermark_us)
        self._watermarks.move()
        return loaded, table.snapshot

    async def _bound(self, live: LiveView, known_until_us: int | None) -> int:
        """Return the instant before which the snapshot is whole: a watermark must be true."""
        source = live.plan.spec.source
        cursor_us = await self._snapshots.cursor_us(live.key.project, source)
        if known_until_us is None or not live.plan.has_watermark:
            return cursor_us
        if cursor_us < known_until_us:
            raise FailedPrecondition(
                "SOURCE_BEHIND",
                f"source {source} is pulled until {cursor_us} us only: pull it first",
                {"source": source, "cursor_us": str(cursor_us)},
            )
        return known_until_us

    async def repair(self) -> None:
        """Load again, for ever, what was loaded once and is gone."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.repair_once()
            except VolaryError as error:
                log.warning("the online state cannot be repaired yet: %s", error.reason)

    async def repair_once(self) -> list[ViewKey]:
        """Load what is gone, and what was gone up to its next watermark; return which."""
        views = await self._definitions.loaded_views()
        held = await self._store.read([(live.key, []) for live in views])
        repaired = []
        for live, found in zip(views, held, strict=True):
            if found.watermark_us is None:
                log.warning("view %s has lost its online state", live.key.view)
                await self._again(live, live.watermark_us)
                self._settling.begin(live.key)
                repaired.append(live.key)
            elif (target_us := self._settling.target(live.key)) is not None:
                await self._again(live, target_us)
                self._settling.end(live.key, target_us)
                repaired.append(live.key)
        return repaired

    async def _again(self, live: LiveView, until_us: int | None) -> None:
        with act_for(live.key.project):
            if live.plan.has_watermark and until_us is not None:
                await self._snapshots.pull(live.key.project, live.plan.spec.source, until_us)
            await self._load(live, until_us if live.plan.has_watermark else None)
