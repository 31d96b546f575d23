"""Definitions at hand: declared, resolved to plans, cached; and the watermarks of views."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction
from volary_kit.errors import Aborted, InvalidArgument, NotFound, Unavailable

from volary_features.domain.feature_set import FeatureSet, digest_of, read_feature_set, schema_hash
from volary_features.domain.plans import RequestPlan, SourcedPlan, plan_of
from volary_features.domain.vectors import VectorPlan
from volary_features.domain.view import FeatureView, read_view
from volary_features.online.layout import ViewKey
from volary_features.store import sets, views

# another process may have declared something; a read that names a version never waits for this
FRESH_S = 1.0
SAVE_EVERY_S = 1.0


@dataclass(frozen=True)
class LiveView:
    """A view version that takes events in; `watermark_us` is None while it was never loaded."""

    key: ViewKey
    plan: SourcedPlan
    watermark_us: int | None


@dataclass(frozen=True)
class ResolvedSet:
    """One version of a set, over the versions of views that it was declared over."""

    project: str
    name: str
    version: int
    plan: VectorPlan
    keys: Mapping[str, ViewKey]

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


class Definitions:
    """Declares views and sets and finds them again."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._live: dict[tuple[str, str], list[LiveView]] = {}
        self._live_at_s = float("-inf")
        self._sets: dict[tuple[str, str, int], ResolvedSet] = {}
        self._newest: dict[tuple[str, str], tuple[float, ResolvedSet]] = {}
        self._reached: dict[ViewKey, int] = {}

    async def apply_view(
        self, project: str, name: str, document: Mapping[str, Any], *, validate_only: bool
    ) -> tuple[Any, FeatureView]:
        """Declare a view; return its row, None when it was only checked, and the view."""
        view = read_view(document)
        _require_name(view.name, name, "feature_view")
        digest = digest_of(view.model_dump(mode="json"))
        if validate_only:
            return None, view
        async with self._database.transaction() as transaction:
            row = await views.newest(transaction, project, name)
            if row is None or row.document_hash != digest:
                row = await views.add(
                    transaction,
                    project=project,
                    view=name,
                    version=1 if row is None else row.version + 1,
                    document=dict(document),
                    document_hash=digest,
                    create_us=self._clock.now_us(),
                )
        self.forget()
        return _added(row, name), view

    async def apply_set(
        self, project: str, name: str, document: Mapping[str, Any], *, validate_only: bool
    ) -> tuple[Any, VectorPlan]:
        """Declare a set over the newest versions of its views; return as `apply_view` does."""
        feature_set = read_feature_set(document)
        _require_name(feature_set.name, name, "feature_set")
        async with self._database.transaction() as transaction:
            found = await self._newest_views(transaction, project, feature_set)
            plan = VectorPlan(feature_set, {row.view: read_view(row.document) for row in found})
            plan.check()
            if validate_only:
                return None, plan
            row = await self._put_set(transaction, project, plan, document, found)
        self.forget()
        return _added(row, name), plan

    async def _newest_views(
        self, transaction: Transaction, project: str, feature_set: FeatureSet
    ) -> list[Any]:
        found = []
        for place, name in enumerate(feature_set.view_names()):
            row = await views.newest(transaction, project, name)
            if row is None:
                raise InvalidArgument(
                    "FEATURE_VIEW_UNKNOWN",
                    f"view {name} is not declared",
                    {"feature_view": name},
                    field=f"feature_set.document.spec.features[{place}].name",
                )
            found.append(row)
        return found

    async def _put_set(
        self,
        transaction: Transaction,
        project: str,
        plan: VectorPlan,
        document: Mapping[str, Any],
        found: Sequence[Any],
    ) -> Any:
        digest = digest_of(plan.feature_set.model_dump(mode="json"))
        schema = schema_hash(plan.feature_set, plan.views)
        row = await sets.newest(transaction, project, plan.feature_set.name)
        if row is not None and (row.document_hash, row.schema_hash) == (digest, schema):
            return row
        return await sets.add(
            transaction,
            project=project,
            feature_set=plan.feature_set.name,
            version=1 if row is None else row.version + 1,
            document=dict(document),
            document_hash=digest,
            schema_hash=schema,
            view_versions={each.view: each.version for each in found},
            create_us=self._clock.now_us(),
        )

    async def resolved(self, project: str, name: str, version: int = 0) -> ResolvedSet:
        """Return a version of a set, 0 the newest; raise NotFound."""
        if not version:
            return await self._newest_set(project, name)
        known = self._sets.get((project, name, version))
        return known or await self._looked_up(project, name, version)

    async def _newest_set(self, project: str, name: str) -> ResolvedSet:
        now_s = self._clock.monotonic_s()
        at_s, newest = self._newest.get((project, name), (float("-inf"), None))
        if newest is not None and now_s - at_s < FRESH_S:
            return newest
        try:
            found = await self._looked_up(project, name, 0)
        except Unavailable:
            if newest is None:
                raise
            return newest  # the last that is known serves while the database is away
        self._newest[project, name] = now_s, found
        return found

    async def _looked_up(self, project: str, name: str, version: int) -> ResolvedSet:
        async with self._database.read() as transaction:
            row = await sets.get(transaction, project, name, version)
            found = await resolve(transaction, row)
        self._sets[project, name, found.version] = found
        return found

    async def live_views(self, project: str, source: str) -> list[LiveView]:
        """Return the view versions that take in events of a source."""
        await self._refresh()
        return self._live.get((project, source), [])

    async def loaded_views(self) -> list[LiveView]:
        """Return the view versions that were loaded once."""
        await self._refresh()
        rows = (row for rows in self._live.values() for row in rows)
        return [row for row in rows if row.watermark_us is not None]

    async def live_view(self, key: ViewKey) -> LiveView:
        """Return a view version; raise NotFound."""
        await self._refresh()
        rows = (row for rows in self._live.values() for row in rows if row.key == key)
        found = next(rows, None)
        if found is None:
            raise NotFound(
                "FEATURE_VIEW_NOT_FOUND", f"feature view {key.view}@{key.version} is not in use"
            )
        return found

    def forget(self) -> None:
        """Look definitions up again when they are next asked for."""
        self._live_at_s = float("-inf")
        self._newest = {key: (float("-inf"), each) for key, (_, each) in self._newest.items()}

    async def _refresh(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._live_at_s < FRESH_S:
            return
        async with self._database.read() as transaction:
            rows = await views.live(transaction)
        live: dict[tuple[str, str], list[LiveView]] = {}
        for row in rows:
            key = ViewKey(row.project, row.view, row.version)
            plan = plan_of(read_view(row.document).spec)
            if not isinstance(plan, RequestPlan):
                place = live.setdefault((row.project, plan.spec.source), [])
                place.append(LiveView(key, plan, row.watermark_us))
        self._live, self._live_at_s = live, now_s

    def note_watermark(self, key: ViewKey, watermark_us: int) -> None:
        """Remember a watermark that a view has reached, to be saved soon."""
        self._reached[key] = max(watermark_us, self._reached.get(key, watermark_us))

    async def save_watermark(self, key: ViewKey, watermark_us: int) -> None:
        """Save a watermark that a view has reached: it counts as loaded from now on."""
        async with self._database.transaction() as transaction:
            await views.raise_watermark(
                transaction, key.project, key.view, key.version, watermark_us
            )
        self.forget()

    async def save_watermarks(self) -> None:
        """Save for ever what was noted; what a crash loses is found again in the stream."""
        saved: dict[ViewKey, int] = {}
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            for key, watermark_us in list(self._reached.items()):
                if saved.get(key) != watermark_us:
                    await self.save_watermark(key, watermark_us)
                    saved[key] = watermark_us


async def resolve(transaction: Transaction, row: Any) -> ResolvedSet:
    """Return a set's row with the view versions behind it."""
    rows = await views.versions(transaction, row.project, row.view_versions)
    found = {each.view: each for each in rows}
    feature_set = read_feature_set(row.document)
    ordered = {name: read_view(found[name].document) for name in feature_set.view_names()}
    keys = {name: ViewKey(row.project, name, found[name].version) for name in ordered}
    return ResolvedSet(
        row.project, row.feature_set, row.version, VectorPlan(feature_set, ordered), keys
    )


def _require_name(declared: str, asked: str, field: str) -> None:
    if declared != asked:
        raise InvalidArgument(
            "NAME_MISMATCH",
            f"the document names {declared}, the request {asked}",
            field=f"{field}.document.name",
        )


def _added(row: Any, name: str) -> Any:
    if row is None:
        raise Aborted(
            "DECLARATION_RACED", f"{name} was declared by another at once", retry_after_s=0.05
        )
    return row
