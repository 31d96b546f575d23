"""The promise: what is served online is what the offline join says, bit for bit, on real flights.

One ordered schedule, as the replay has it: records become known and are folded, the watermark
moves, and predictions are asked for at their scheduled departure, some of them behind the
newest record. Every served vector is then compared with the point-in-time join.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from volary_features.definitions import ResolvedSet
from volary_features.domain.quanta import Numbers
from volary_features.offline.records import instants, number_column
from volary_features.offline.training import joined
from volary_features.online.reading import Question
from volary_ingest.connectors.package_files import read_package_file
from volary_ingest.domain.intake import take
from volary_ingest.domain.source import PackageFiles, read_source
from volary_kit.documents import read_documents

from .conftest import Mesh, record_events, watermark_event

FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
STREAMED = ("landings", "weather")
LOADED_UNTIL = datetime(2013, 1, 20, tzinfo=UTC)
REPLAYED_UNTIL = datetime(2013, 2, 2, tzinfo=UTC)
STEP = timedelta(hours=2)
AT_LEAST = 10_000


def source_table(name: str, tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Return the first weeks of a source of the example, through its own contract."""
    source = read_source(read_documents(FLIGHTS / f"source-{name}.yaml")[0].data)
    assert isinstance(source.spec.connector, PackageFiles)
    raw = read_package_file(source.spec.connector)
    if name in STREAMED:
        raw = raw.filter(pl.col("time_hour") < "2013-02-03")
    return take(raw, source.spec, tables).accepted


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    found: dict[str, pl.DataFrame] = {}
    for name in ("airports", "planes", "weather", "landings"):
        found[name] = source_table(name, found)
    return found


async def declared(mesh: Mesh) -> ResolvedSet:
    documents = [each.data for each in read_documents(FLIGHTS / "features.yaml")]
    return await mesh.declare(documents[:-1], documents[-1])


def question(rows: pl.DataFrame, resolved: ResolvedSet) -> Question:
    plan = resolved.plan
    return Question(
        keys={name: rows.get_column(name).to_list() for name in plan.entities},
        fields={name: number_column(rows, name) for name in plan.request_fields},
        asked_us=instants(rows, "event_time"),
    )


async def replayed(
    mesh: Mesh, resolved: ResolvedSet, tables: dict[str, pl.DataFrame]
) -> tuple[pl.DataFrame, Numbers]:
    """Run the schedule; return what was asked and what was served."""
    asks = tables["landings"].sort("event_time", "record_id")
    asked, served = [], []
    until = LOADED_UNTIL
    while until < REPLAYED_UNTIL:
        start, until = until, until + STEP
        for source in STREAMED:
            news = tables[source].filter(pl.col("known_at").is_between(start, until, closed="left"))
            # out of order within a step, and the first records twice
            shuffled = news.sample(fraction=1.0, shuffle=True, seed=news.height)
            events = record_events(source, pl.concat([shuffled, news.head(5)]))
            await mesh.folding.handle([*events, watermark_event(source, us(until))])
        rows = asks.filter(pl.col("event_time").is_between(start, until, closed="left"))
        if rows.height:
            asked.append(rows)
            wanted = question(rows, resolved)
            answer = await mesh.reading.read(resolved, wanted, us(until), wait_s=5.0)
            assert answer.watermark_us == us(until)
            served.append(answer.vectors)
    return pl.concat(asked), np.concatenate(served)


def us(instant: datetime) -> int:
    return int(instant.timestamp()) * 1_000_000


async def test_every_served_vector_has_the_bits_of_the_join(
    mesh: Mesh, tables: dict[str, pl.DataFrame]
) -> None:
    mesh.ingest.tables = tables
    resolved = await declared(mesh)
    loaded = await mesh.materialise(resolved, us(LOADED_UNTIL))
    assert loaded.watermark_us == us(LOADED_UNTIL)

    asked, served = await replayed(mesh, resolved, tables)

    assert len(asked) >= AT_LEAST
    wanted = question(asked, resolved)
    keys = {name: pl.Series(values, dtype=pl.String) for name, values in wanted.keys.items()}
    expected, is_present = joined(resolved.plan, tables, keys, wanted.fields, wanted.asked_us)
    np.testing.assert_array_equal(served.view(np.int64), expected.view(np.int64))
    # the comparison is of values, not of defaults
    assert is_present.mean() > 0.8
    assert (expected.std(axis=0) > 0).all()


async def test_a_read_right_after_loading_equals_the_join(
    mesh: Mesh, tables: dict[str, pl.DataFrame]
) -> None:
    mesh.ingest.tables = tables
    resolved = await declared(mesh)
    await mesh.materialise(resolved, us(LOADED_UNTIL))
    rows = tables["landings"].filter(
        pl.col("event_time").is_between(LOADED_UNTIL - STEP, LOADED_UNTIL, closed="left")
    )
    wanted = question(rows, resolved)
    answer = await mesh.reading.read(resolved, wanted, None, wait_s=0.0)
    keys = {name: pl.Series(values, dtype=pl.String) for name, values in wanted.keys.items()}
    expected, _ = joined(resolved.plan, tables, keys, wanted.fields, wanted.asked_us)
    assert rows.height > 50
    np.testing.assert_array_equal(answer.vectors.view(np.int64), expected.view(np.int64))
