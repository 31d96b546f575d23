"""A small declared source of parcels, and the parts of ingest around a real Postgres."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from volary_ingest.catalog import Catalog
from volary_ingest.domain.rows import TextRow, text_frame
from volary_ingest.domain.source import Source, read_source
from volary_ingest.pulls import Pulled, Pulls
from volary_ingest.pushes import Pushes
from volary_ingest.references import ReferenceTables
from volary_ingest.store import SourceKey
from volary_ingest.store.frames import Frames
from volary_kit.database import Database
from volary_kit.testing import ManualClock

HUBS: dict[str, Any] = {
    "kind": "Source",
    "name": "hubs",
    "owner": "logistics",
    "on_call": "logistics-pager",
    "spec": {
        "connector": {"kind": "push"},
        "fields": [{"name": "hub", "type": "string"}, {"name": "zone", "type": "string"}],
        "derive": [{"name": "listed_at", "constant": "2020-01-01T00:00:00Z", "type": "timestamp"}],
        "keys": ["hub"],
        "event_time": "listed_at",
        "known_at": "listed_at",
    },
}
PARCELS: dict[str, Any] = {
    "kind": "Source",
    "name": "parcels",
    "owner": "logistics",
    "on_call": "logistics-pager",
    "spec": {
        "connector": {"kind": "push", "missing": ["NA", ""]},
        "fields": [
            {"name": "number", "type": "int64"},
            {"name": "hub", "type": "string"},
            {"name": "sent_at", "from": "sent", "type": "timestamp"},
            {"name": "arrived_at", "from": "arrived", "type": "timestamp"},
            {"name": "weight", "type": "float64"},
        ],
        "derive": [
            {
                "name": "zone",
                "lookup": {"source": "hubs", "key": "hub", "column": "zone", "by": "hub"},
            }
        ],
        "keys": ["number", "hub"],
        "event_time": "sent_at",
        "known_at": "arrived_at",
        "contract": [
            {
                "name": "arrived",
                "check": "not_null",
                "column": "arrived_at",
                "severity": "quarantine",
            },
            {
                "name": "weight_given",
                "check": "not_null",
                "column": "weight",
                "severity": "default",
                "value": 1.5,
            },
            {
                "name": "weight_plausible",
                "check": "range",
                "column": "weight",
                "min": 0,
                "max": 50,
                "severity": "quarantine",
            },
            {
                "name": "hub_known",
                "check": "references",
                "column": "hub",
                "source": "hubs",
                "key": "hub",
                "severity": "warn",
            },
            {
                "name": "mostly_good",
                "check": "quarantine_rate",
                "max": 0.5,
                "severity": "halt",
                "min_rows": 4,
            },
        ],
    },
}
DAY_US = 86_400_000_000
START_US = 1_577_836_800_000_000  # 2020-01-01T00:00:00Z


def hubs_document() -> dict[str, Any]:
    return copy.deepcopy(HUBS)


def parcels_document() -> dict[str, Any]:
    return copy.deepcopy(PARCELS)


def parcel(number: int, day: int = 1, **changes: str | None) -> TextRow:
    """A good parcel: sent in the morning of a day of January 2020, there at noon."""
    row: TextRow = {
        "number": str(number),
        "hub": "OSL",
        "sent": f"2020-01-{day:02}T08:00:00Z",
        "arrived": f"2020-01-{day:02}T12:00:00Z",
        "weight": "2.25",
    }
    return row | changes


@dataclass
class Rig:
    """Ingest without its listener; `tables` is what the connectors have."""

    database: Database
    frames: Frames
    catalog: Catalog
    pulls: Pulls
    pushes: Pushes
    tables: dict[str, list[TextRow]] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)

    async def progress(self, _rows: int, stage: str) -> None:
        self.stages.append(stage)

    async def pull(
        self, source: str = "parcels", until_us: int | None = None, **more: Any
    ) -> Pulled:
        return await self.pulls.run(key(source), until_us, self.progress, **more)

    async def rows(self, source: str = "parcels") -> pl.DataFrame:
        """Everything that the newest snapshot of a source holds."""
        return self.frames.read(await self.catalog.snapshot(key(source), "latest"))

    async def count(self, table: str) -> int:
        from sqlalchemy import text

        async with self.database.read() as transaction:
            return int(await transaction.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def key(source: str = "parcels") -> SourceKey:
    return SourceKey("default", source)


MakeRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def make_rig(make_database: Callable[[str], Awaitable[Database]], tmp_path: Path) -> MakeRig:
    async def make(frames: Callable[[Path], Frames] = Frames) -> Rig:
        database, clock = await make_database("ingest"), ManualClock()
        files = frames(tmp_path / "files")
        references = ReferenceTables(files)
        tables: dict[str, list[TextRow]] = {"hubs": [{"hub": "OSL", "zone": "Europe/Oslo"}]}

        def read(source: Source) -> pl.DataFrame:
            return text_frame(tables.get(source.name, []), source.spec)

        pulls = Pulls(database, files, references, read, clock)
        rig = Rig(
            database,
            files,
            Catalog(database, files, clock),
            pulls,
            Pushes(database, references, clock),
            tables,
        )
        await rig.catalog.apply(key("hubs"), hubs_document(), validate_only=False)
        await rig.catalog.apply(key(), parcels_document(), validate_only=False)
        return rig

    return make


@pytest.fixture
async def rig(make_rig: MakeRig) -> Rig:
    return await make_rig()


@pytest.fixture
def parcels() -> Source:
    return read_source(parcels_document())


@pytest.fixture
def new_parcel() -> Callable[..., TextRow]:
    return parcel


@pytest.fixture
def new_document() -> Callable[[], dict[str, Any]]:
    return parcels_document
