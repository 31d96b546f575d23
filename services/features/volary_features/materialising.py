"""Materialising: load views from snapshots when asked, and again when the online state is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from volary_kit.calls import act_for
from volary_kit.errors import FailedPrecondition, VolaryError

from volary_features.definitions import Definitions, LiveView, ResolvedSet
from volary_features.offline.records import OWN_COLUMNS, records_of
from volary_features.online.layout import ViewKey
from volary_features.online.loading import Loading
from volary_features.online.settling import Settling
from volary_features.online.store import OnlineStore
from volary_features.online.waiting import Watermarks
from volary_features.snapshots import LATEST, Snapshots, SourceTable

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.5
Progress = Callable[[str, int], Awaitable[None]]


@dataclass(frozen=True)
class Materialised:
    """What was loaded, of all views together."""

    events: int = 0
    entities: int = 0
    watermark_us: int | None = None
    snapshots: tuple[str, ...] = ()

    def __add__(self, other: Materialised) -> Materialised:
        marks = [each for each in (self.watermark_us, other.watermark_us) if each is not None]
        return Materialised(
            self.events + other.events,
            self.entities + other.entities,
            min(marks, default=None),
            (*self.snapshots, *other.snapshots),
        )


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
        """Load every view behind a set from the newest snapshots.

        Raises FailedPrecondition `SOURCE_NOT_PULLED`, `SOURCE_BEHIND`, `KNOWN_UNTIL_TOO_OLD`.
        """
        live = [await self._definitions.live_view(key) for key in self._keys(resolved)]
        done = Materialised()
        for source, views in _by_source(live).items():
            await progress(f"loading {source}", done.events)
            done += await self._load(source, views, known_until_us)
        return done

    def _keys(self, resolved: ResolvedSet) -> list[ViewKey]:
        return [resolved.keys[name] for name in resolved.plan.sourced]

    async def _load(
        self, source: str, views: Sequence[LiveView], known_until_us: int | None
    ) -> Materialised:
        """Load views of one source from one reading of its newest snapshot."""
        project = views[0].key.project
        is_timed = any(live.plan.has_watermark for live in views)
        until_us = await self._bound(project, source, known_until_us if is_timed else None)
        specs = [live.plan.spec for live in views]
        columns = [name for spec in specs for name in (spec.key, *spec.columns())]
        table = await self._snapshots.table(
            project,
            source,
            list(dict.fromkeys([*OWN_COLUMNS, *columns])),
            LATEST,
            until_us if is_timed else None,
        )
        done = Materialised(snapshots=(table.snapshot,))
        for live in views:
            done += await self._load_view(live, table, until_us)
        return done

    async def _load_view(self, live: LiveView, table: SourceTable, until_us: int) -> Materialised:
        spec = live.plan.spec
        records = records_of(table.rows, spec.key, spec.columns())
        loaded = await self._loading.load(live, records, until_us)
        await self._definitions.save_watermark(live.key, loaded.watermark_us)
        self._watermarks.move()
        reached_us = loaded.watermark_us if live.plan.has_watermark else None
        return Materialised(loaded.events, loaded.entities, reached_us)

    async def _bound(self, project: str, source: str, known_until_us: int | None) -> int:
        """Return the instant before which the snapshot is whole: a watermark must be true."""
        cursor_us = await self._snapshots.cursor_us(project, source)
        if known_until_us is not None and cursor_us < known_until_us:
            raise FailedPrecondition(
                "SOURCE_BEHIND",
                f"source {source} is pulled until {cursor_us} us only: pull it first",
                {"source": source, "cursor_us": str(cursor_us)},
            )
        return cursor_us if known_until_us is None else known_until_us

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
        targets: dict[ViewKey, int] = {}
        for live, found in zip(views, held, strict=True):
            if found.watermark_us is None:
                log.warning("view %s has lost its online state", live.key.view)
                targets[live.key] = live.watermark_us or 0
                self._settling.begin(live.key)
            elif (target_us := self._settling.target(live.key)) is not None:
                targets[live.key] = target_us
        again = [live for live in views if live.key in targets]
        for project in sorted({live.key.project for live in again}):
            mine = [live for live in again if live.key.project == project]
            for source, of_source in _by_source(mine).items():
                with act_for(project):
                    await self._again(source, of_source, targets)
        return list(targets)

    async def _again(
        self, source: str, views: Sequence[LiveView], targets: Mapping[ViewKey, int]
    ) -> None:
        timed = [live for live in views if live.plan.has_watermark]
        until_us = max((targets[live.key] for live in timed), default=None)
        if until_us is not None:
            await self._snapshots.pull(views[0].key.project, source, until_us)
        await self._load(source, views, until_us)
        for live in views:
            if self._settling.target(live.key) is not None or not live.plan.has_watermark:
                self._settling.end(live.key, until_us or 0)


def _by_source(views: Iterable[LiveView]) -> dict[str, list[LiveView]]:
    found: dict[str, list[LiveView]] = {}
    for live in views:
        found.setdefault(live.plan.spec.source, []).append(live)
    return found
