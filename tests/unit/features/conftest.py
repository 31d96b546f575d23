"""A small declared project of shops and sales, and the parts of features around real engines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pytest
from redis.asyncio import Redis
from volary.events.v1 import event_pb2
from volary.values.v1 import value_pb2
from volary_features.definitions import Definitions, ResolvedSet
from volary_features.materialising import Materialised, Materialising
from volary_features.online.folding import Folding
from volary_features.online.reading import LastKnown, Reading
from volary_features.online.settling import Settling
from volary_features.online.store import OnlineStore
from volary_features.online.waiting import Watermarks
from volary_features.snapshots import SourceTable
from volary_kit.database import Database
from volary_kit.testing import ManualClock
from volary_kit.timestamps import from_us

PROJECT = "default"
INSTANT = pl.Datetime("us", "UTC")


def document(_kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": _kind, "name": name, "owner": "shop", "on_call": "shop-pager", "spec": spec}


SALES = document(
    "FeatureView",
    "sales",
    kind="rolling",
    source="sales",
    entity="shop",
    history="6h",
    windows=["1h", {"name": "day", "length": "1d", "hop": "1h"}],
    features=[
        {"name": "count", "aggregate": "count"},
        {"name": "mean", "aggregate": "mean", "column": "amount", "decimals": 2},
        {"name": "total", "aggregate": "sum", "column": "amount", "decimals": 2},
        {"name": "least", "aggregate": "min", "column": "amount", "decimals": 2},
        {"name": "most", "aggregate": "max", "column": "amount", "decimals": 2},
    ],
)
WEATHER = document(
    "FeatureView",
    "weather",
    kind="latest",
    source="weather",
    entity="town",
    ttl="2h",
    history="6h",
    features=["temp", {"name": "rain", "column": "rain_mm"}],
)
TOWN = document(
    "FeatureView",
    "town",
    kind="lookup",
    source="towns",
    entity="town",
    on_store_failure="default",
    features=["people"],
)
BASKET = document(
    "FeatureView",
    "basket",
    kind="request",
    fields=["items", "value"],
    features=[
        {"name": "items", "expression": "items"},
        {"name": "each", "expression": "value / items"},
        {"name": "hour_sin", "expression": "sin(2 * pi * minute_of_day(event_time) / 1440)"},
    ],
)
VIEWS = [SALES, WEATHER, TOWN, BASKET]
MEMBERS = [
    *(
        f"sales.{name}_{window}"
        for name in ("count", "mean", "total", "least", "most")
        for window in ("1h", "day")
    ),
    "weather.temp",
    "weather.rain",
    "town.people",
    "basket.items",
    "basket.each",
    "basket.hour_sin",
]
SET = document(
    "FeatureSet",
    "purchase",
    features=[{"name": name, "default": -1.0 - place} for place, name in enumerate(MEMBERS)],
)


def rows_of(columns: dict[str, list[Any]]) -> pl.DataFrame:
    """Return a table with instants, given in microseconds, as ingest's snapshots have them."""
    return pl.DataFrame(columns).with_columns(pl.col("event_time", "known_at").cast(INSTANT))


def value_of(value: Any) -> value_pb2.Value:
    if isinstance(value, bool):
        return value_pb2.Value(bool_value=value)
    if isinstance(value, int):
        return value_pb2.Value(integer_value=value)
    if isinstance(value, float):
        return value_pb2.Value(number_value=value)
    return value_pb2.Value(string_value=value)


def record_event(source: str, row: dict[str, Any]) -> event_pb2.Event:
    """Return a row of a table as the event that ingest publishes."""
    own = ("record_id", "event_time", "known_at")
    fields = {k: value_of(v) for k, v in row.items() if k not in own and v is not None}
    return event_pb2.Event(
        id=f"{source}/{row['record_id']}",
        project=PROJECT,
        event_time=from_us(row["event_time"]),
        known_at=from_us(row["known_at"]),
        source_record=event_pb2.SourceRecordEvent(
            source=source,
            record_id=row["record_id"],
            record=value_pb2.Record(fields=fields),
        ),
    )


def record_events(source: str, table: pl.DataFrame) -> list[event_pb2.Event]:
    plain = table.with_columns(pl.col(INSTANT).dt.epoch("us"))
    return [record_event(source, row) for row in plain.iter_rows(named=True)]


def watermark_event(source: str, watermark_us: int) -> event_pb2.Event:
    return event_pb2.Event(
        id=f"{source}@{watermark_us}",
        project=PROJECT,
        watermark=event_pb2.WatermarkEvent(source=source, watermark=from_us(watermark_us)),
    )


@dataclass
class IngestStandIn:
    """The tables of ingest, and how far each was pulled; same calls as `Snapshots`."""

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    pulls: list[tuple[str, int]] = field(default_factory=list)

    async def cursor_us(self, project: str, source: str) -> int:
        return self.cursors[source]

    async def pull(self, project: str, source: str, until_us: int) -> None:
        self.pulls.append((source, until_us))
        self.cursors[source] = max(until_us, self.cursors[source])

    async def table(
        self, project: str, source: str, columns: Any, snapshot: str, known_until_us: int | None
    ) -> SourceTable:
        rows = self.tables[source].select(columns)
        if known_until_us is not None:
            rows = rows.filter(pl.col("known_at") < pl.lit(known_until_us).cast(INSTANT))
        return SourceTable(f"snapshots/{source}", rows)


@dataclass
class Mesh:
    """Everything of features between its handlers and its engines."""

    definitions: Definitions
    store: OnlineStore
    folding: Folding
    reading: Reading
    materialising: Materialising
    watermarks: Watermarks
    settling: Settling
    ingest: IngestStandIn
    clock: ManualClock
    redis: Redis

    async def declare(
        self, views: list[dict[str, Any]], feature_set: dict[str, Any]
    ) -> ResolvedSet:
        for each in views:
            await self.definitions.apply_view(PROJECT, each["name"], each, validate_only=False)
        name = feature_set["name"]
        await self.definitions.apply_set(PROJECT, name, feature_set, validate_only=False)
        return await self.definitions.resolved(PROJECT, name)

    async def materialise(self, resolved: ResolvedSet, known_until_us: int) -> Materialised:
        for source in self.ingest.tables:
            self.ingest.cursors[source] = known_until_us
        return await self.materialising.run(resolved, known_until_us, silent)


async def silent(stage: str, rows: int) -> None:
    """Take progress and say nothing."""


def assemble(database: Database, redis: Redis, ingest: IngestStandIn) -> Mesh:
    clock = ManualClock()
    definitions = Definitions(database, clock)
    store = OnlineStore(redis, timeout_s=5.0)
    watermarks, settling = Watermarks(store), Settling()
    return Mesh(
        definitions=definitions,
        store=store,
        folding=Folding(store, definitions, settling),
        reading=Reading(store, definitions, watermarks, LastKnown(10_000)),
        materialising=Materialising(definitions, ingest, store, watermarks, settling),  # pyright: ignore[reportArgumentType]
        watermarks=watermarks,
        settling=settling,
        ingest=ingest,
        clock=clock,
        redis=redis,
    )


@pytest.fixture
async def mesh(make_database: Callable[[str], Awaitable[Database]], redis: Redis) -> Mesh:
    return assemble(await make_database("features"), redis, IngestStandIn())
