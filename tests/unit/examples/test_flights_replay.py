"""The world that the demo plays is the world that the sources declare."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from volary_cli.demo.declared import Ticks, load_ticks, read_demo
from volary_ingest.connectors import read
from volary_ingest.domain.intake import take
from volary_ingest.domain.source import Source
from volary_kit.documents import read_documents

FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
START, END = datetime(2013, 3, 8, tzinfo=UTC), datetime(2013, 3, 12, tzinfo=UTC)  # clocks change


@pytest.fixture(scope="module")
def ticks() -> Ticks:
    return load_ticks(FLIGHTS, read_demo(FLIGHTS).spec.replay.module)


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    found: dict[str, pl.DataFrame] = {}
    for name in ("airports", "planes", "weather", "landings"):
        (document,) = read_documents(FLIGHTS / f"source-{name}.yaml")
        source = document.check(Source)
        others = {other: found[other] for other in source.spec.references()}
        found[name] = take(read(source), source.spec, others).accepted
    return found


@pytest.mark.parametrize("source", ["landings", "weather"])
def test_each_record_is_pushed_in_the_tick_in_which_it_is_known(
    ticks: Ticks, tables: dict[str, pl.DataFrame], source: str
) -> None:
    known = tables[source].filter(pl.col("known_at").is_between(START, END, closed="left"))
    step = timedelta(minutes=20)
    rows = [
        (record, tick.until)
        for tick in ticks(START, END, step)
        for record in tick.records.get(source, [])
    ]
    declared = known["known_at"].sort().to_list()
    bounds = sorted(until for _, until in rows)
    assert len(rows) == known.height > 90
    assert all(b - step <= k < b for k, b in zip(declared, bounds, strict=True))


def test_every_flight_is_asked_about_when_it_should_leave_landed_or_not(
    ticks: Ticks, tables: dict[str, pl.DataFrame]
) -> None:
    asks = [ask for tick in ticks(START, END, timedelta(hours=1)) for ask in tick.asks]
    landed = tables["landings"].filter(pl.col("event_time").is_between(START, END, closed="left"))
    times = {ask.subject: ask.event_time for ask in asks}
    assert len(times) == len(asks) > landed.height
    for flight, departs in landed.select("flight_id", "event_time").iter_rows():
        assert times[flight] == departs
    assert [ask.event_time for ask in asks] == sorted(ask.event_time for ask in asks)
