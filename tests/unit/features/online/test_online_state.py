"""Folding, reading, loading and losing the online state, on a real Redis and Postgres."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from redis.asyncio import Redis
from volary_features.definitions import ResolvedSet
from volary_features.domain.cells import unpacked
from volary_features.domain.instants import HOUR_US, MINUTE_US
from volary_features.offline.training import joined
from volary_features.online.reading import DEFAULTED, PRESENT, STALE, Answer, Question
from volary_kit.database import Database
from volary_kit.errors import FailedPrecondition, Unavailable
from volary_kit.testing import eventually

from tests.unit.features.conftest import (
    SALES,
    SET,
    VIEWS,
    WEATHER,
    IngestStandIn,
    Mesh,
    assemble,
    record_events,
    rows_of,
    watermark_event,
)

NOON = 1_700_000_000_000_000 // HOUR_US * HOUR_US
SHOPS, TOWNS = ["a", "b", "c"], ["x", "y"]


def sales_table(count: int, start_us: int, length_us: int, seed: int = 1) -> pl.DataFrame:
    chance = random.Random(seed)
    known = sorted(
        start_us + chance.randrange(length_us // MINUTE_US) * MINUTE_US for _ in range(count)
    )
    return rows_of(
        {
            "record_id": [f"{seed}-{place}" for place in range(count)],
            "event_time": [at - MINUTE_US for at in known],
            "known_at": known,
            "shop": [chance.choice(SHOPS) for _ in known],
            "amount": [chance.choice([None, chance.randrange(-999, 9999) / 100]) for _ in known],
        }
    )


def weather_table(start_us: int, hours: int) -> pl.DataFrame:
    stamps = [start_us + hour * HOUR_US for hour in range(hours) for _ in TOWNS]
    return rows_of(
        {
            "record_id": [f"{at}-{town}" for at, town in zip(stamps, TOWNS * hours, strict=True)],
            "event_time": stamps,
            "known_at": [at + HOUR_US for at in stamps],
            "town": TOWNS * hours,
            "temp": [float(place % 37) for place in range(len(stamps))],
            "rain_mm": [None if place % 3 else place / 7 for place in range(len(stamps))],
        }
    )


def tables() -> dict[str, pl.DataFrame]:
    start = NOON - 30 * HOUR_US
    return {
        "sales": sales_table(600, start, 42 * HOUR_US),
        "weather": weather_table(start, 42),
        "towns": rows_of(
            {
                "record_id": ["x"],
                "event_time": [0],
                "known_at": [0],
                "town": ["x"],
                "people": [12_000],
            }
        ),
    }


def question(*asked: int, shops: list[str] | None = None) -> Question:
    rows = len(asked)
    return Question(
        keys={"shop": (shops or SHOPS * rows)[:rows], "town": (TOWNS * rows)[:rows]},
        fields={"items": np.arange(rows) + 1.0, "value": np.arange(rows) * 3.5},
        asked_us=np.array(asked, dtype=np.int64),
    )


def expected(resolved: ResolvedSet, found: dict[str, pl.DataFrame], asked: Question) -> Any:
    keys = {name: pl.Series(values, dtype=pl.String) for name, values in asked.keys.items()}
    return joined(resolved.plan, found, keys, asked.fields, asked.asked_us)[0]


def assert_same_bits(answer: Answer, vectors: Any) -> None:
    np.testing.assert_array_equal(answer.vectors.view(np.int64), vectors.view(np.int64))


def between(table: pl.DataFrame, start_us: int, end_us: int) -> pl.DataFrame:
    known = pl.col("known_at").dt.epoch("us")
    return table.filter((known >= start_us) & (known < end_us))


async def loaded(mesh: Mesh) -> ResolvedSet:
    """Declare everything and load what was known before noon."""
    mesh.ingest.tables = tables()
    resolved = await mesh.declare(VIEWS, SET)
    await mesh.materialise(resolved, NOON)
    return resolved


async def fold(mesh: Mesh, start_us: int, end_us: int, *, watermark: bool = True) -> None:
    for source in ("sales", "weather"):
        events = record_events(source, between(mesh.ingest.tables[source], start_us, end_us))
        if watermark:
            events.append(watermark_event(source, end_us))
        await mesh.folding.handle(events)


async def read(mesh: Mesh, resolved: ResolvedSet, asked: Question, **more: Any) -> Answer:
    return await mesh.reading.read(resolved, asked, more.get("min_us"), more.get("wait_s", 0.0))


async def state_of(redis: Redis) -> dict[bytes, bytes]:
    names = [key async for key in redis.scan_iter("vf:*") if not key.endswith(b":x")]
    return {name: await redis.get(name) for name in names}


async def test_what_is_known_later_changes_no_vector(mesh: Mesh) -> None:
    resolved = await loaded(mesh)
    asked = question(NOON - 2 * HOUR_US, NOON - 1, NOON)
    before = await read(mesh, resolved, asked)
    await fold(mesh, NOON, NOON + 4 * HOUR_US)
    after = await read(mesh, resolved, asked)
    assert_same_bits(after, before.vectors)
    assert_same_bits(after, expected(resolved, mesh.ingest.tables, asked))


async def test_repeated_shuffled_and_late_events_count_once(mesh: Mesh) -> None:
    resolved = await loaded(mesh)
    news = record_events("sales", between(mesh.ingest.tables["sales"], NOON, NOON + 2 * HOUR_US))
    old = record_events("sales", between(mesh.ingest.tables["sales"], NOON - HOUR_US, NOON))
    events = [*news, *news[::3], *old]  # the old ones are in the snapshot already
    random.Random(5).shuffle(events)
    for start in range(0, len(events), 7):
        await mesh.folding.handle(events[start : start + 7])
    await mesh.folding.handle(events)
    await fold(mesh, NOON, NOON + 2 * HOUR_US)
    asked = question(NOON + 2 * HOUR_US, NOON + HOUR_US, NOON + 1)
    assert_same_bits(
        await read(mesh, resolved, asked), expected(resolved, mesh.ingest.tables, asked)
    )


async def test_batches_of_any_size_leave_the_same_bytes(mesh: Mesh, redis: Redis) -> None:
    await loaded(mesh)
    news = record_events("sales", between(mesh.ingest.tables["sales"], NOON, NOON + 2 * HOUR_US))
    before = await state_of(redis)
    await mesh.folding.handle(news)
    at_once = await state_of(redis)
    assert at_once != before
    for key, value in before.items():
        await redis.set(key, value)
    for event in reversed(news):
        await mesh.folding.handle([event])
    assert await state_of(redis) == at_once


async def test_a_record_older_than_what_is_in_tiles_is_dropped(mesh: Mesh, redis: Redis) -> None:
    resolved = await loaded(mesh)
    late = between(mesh.ingest.tables["sales"], NOON - 20 * HOUR_US, NOON - 10 * HOUR_US).head(3)
    asked = question(NOON)
    before = await state_of(redis)
    await mesh.folding.handle(record_events("sales", late))
    assert await state_of(redis) == before
    assert_same_bits(
        await read(mesh, resolved, asked), expected(resolved, mesh.ingest.tables, asked)
    )


async def test_the_past_lies_in_tiles(mesh: Mesh, redis: Redis) -> None:
    resolved = await loaded(mesh)
    layout = resolved.plan.plans["sales"].layout  # pyright: ignore[reportAttributeAccessIssue]
    state = await redis.get(resolved.keys["sales"].entity("a"))
    cells, _ = unpacked([state or b""], layout.dtype)
    tiles = cells[cells["id"] == 0]
    assert len(tiles) > 10
    assert int(tiles["rows"].sum()) > len(tiles)
    assert (cells["at"][cells["id"] != 0] >= NOON - 6 * HOUR_US - HOUR_US).all()


async def test_an_instant_before_the_history_is_refused(mesh: Mesh) -> None:
    resolved = await loaded(mesh)
    await read(mesh, resolved, question(NOON - 6 * HOUR_US))
    with pytest.raises(FailedPrecondition) as caught:
        await read(mesh, resolved, question(NOON - 6 * HOUR_US - 1))
    assert caught.value.reason == "INSTANT_TOO_OLD"


async def test_entities_go_when_the_watermark_has_passed_them(mesh: Mesh, redis: Redis) -> None:
    resolved = await loaded(mesh)
    view = resolved.keys["sales"]
    assert await redis.zcard(view.index) == len(SHOPS)
    # a day's window and its hop, and the history behind the watermark
    await mesh.folding.handle([watermark_event("sales", NOON + 24 * HOUR_US)])
    assert await redis.zcard(view.index) == len(SHOPS)
    await mesh.folding.handle([watermark_event("sales", NOON + 40 * HOUR_US)])
    assert await redis.zcard(view.index) == 0
    assert not [key async for key in redis.scan_iter(f"{view.prefix}e:*")]
    answer = await read(mesh, resolved, question(NOON + 40 * HOUR_US))
    counts = resolved.plan.names.index("sales.count_day")
    assert answer.vectors[0, counts] == 0.0
    assert answer.states[0, counts] == PRESENT  # nothing sold is known, not missing


async def test_a_read_waits_for_its_watermark_and_is_woken(mesh: Mesh) -> None:
    resolved = await loaded(mesh)
    watching = asyncio.create_task(mesh.watermarks.watch())
    asked = question(NOON + HOUR_US)
    waiting = asyncio.create_task(read(mesh, resolved, asked, min_us=NOON + HOUR_US, wait_s=30.0))
    await mesh.folding.handle([watermark_event("sales", NOON + HOUR_US)])
    assert not waiting.done()  # the weather's watermark is behind
    await fold(mesh, NOON, NOON + HOUR_US)
    answer = await waiting
    watching.cancel()
    assert answer.watermark_us == NOON + HOUR_US
    assert_same_bits(answer, expected(resolved, mesh.ingest.tables, asked))


async def test_a_watermark_that_does_not_come_fails_in_time(mesh: Mesh) -> None:
    resolved = await loaded(mesh)
    with pytest.raises(FailedPrecondition) as caught:
        await read(mesh, resolved, question(NOON), min_us=NOON + 1, wait_s=0.05)
    assert caught.value.reason == "WATERMARK_NOT_REACHED"
    assert caught.value.metadata["watermark_us"] == str(NOON)


async def test_a_watermark_never_goes_back(mesh: Mesh) -> None:
    resolved = await loaded(mesh)
    for source in ("sales", "weather"):
        await mesh.folding.handle([watermark_event(source, NOON + HOUR_US)])
        await mesh.folding.handle([watermark_event(source, NOON - HOUR_US)])
    assert (await read(mesh, resolved, question(NOON))).watermark_us == NOON + HOUR_US


async def test_a_view_that_was_never_loaded_does_not_answer(mesh: Mesh) -> None:
    mesh.ingest.tables = tables()
    resolved = await mesh.declare(VIEWS, SET)
    with pytest.raises(FailedPrecondition) as caught:
        await read(mesh, resolved, question(NOON))
    assert caught.value.reason == "VIEW_NOT_MATERIALISED"


async def test_what_the_stream_brought_before_the_load_is_kept(mesh: Mesh) -> None:
    mesh.ingest.tables = tables()
    resolved = await mesh.declare(VIEWS, SET)
    await fold(mesh, NOON - HOUR_US, NOON + HOUR_US, watermark=False)
    await mesh.materialise(resolved, NOON)
    await fold(mesh, NOON + HOUR_US, NOON + 2 * HOUR_US)
    asked = question(NOON + 2 * HOUR_US, NOON)
    assert_same_bits(
        await read(mesh, resolved, asked), expected(resolved, mesh.ingest.tables, asked)
    )


async def test_loading_needs_a_source_that_is_pulled_so_far(mesh: Mesh) -> None:
    mesh.ingest.tables = tables()
    resolved = await mesh.declare(VIEWS, SET)
    await mesh.materialise(resolved, NOON)
    with pytest.raises(FailedPrecondition) as caught:
        await mesh.materialising.run(resolved, NOON + 1, _silent)
    assert caught.value.reason == "SOURCE_BEHIND"


async def _silent(stage: str, rows: int) -> None:
    """Say nothing."""


async def test_a_restart_reads_the_same_bytes(
    mesh: Mesh, redis: Redis, make_database: Callable[[str], Awaitable[Database]]
) -> None:
    resolved = await loaded(mesh)
    await fold(mesh, NOON, NOON + HOUR_US)
    asked = question(NOON + HOUR_US, NOON)
    before = await read(mesh, resolved, asked)
    again = assemble(mesh.definitions._database, redis, mesh.ingest)
    found = await again.definitions.resolved("default", "purchase")
    assert found.plan.schema_hash == resolved.plan.schema_hash
    assert_same_bits(await read(again, found, asked), before.vectors)


async def test_a_lost_redis_is_loaded_again_with_equal_bytes(mesh: Mesh, redis: Redis) -> None:
    resolved = await loaded(mesh)
    before = await state_of(redis)
    asked = question(NOON, NOON - HOUR_US)
    answer = await read(mesh, resolved, asked)
    await redis.flushall()
    with pytest.raises(Unavailable):
        await read(mesh, resolved, asked)
    repaired = await mesh.materialising.repair_once()
    assert {key.view for key in repaired} == {"sales", "weather", "town"}
    assert await state_of(redis) == before
    assert_same_bits(await read(mesh, resolved, asked), answer.vectors)
    assert ("sales", NOON) in mesh.ingest.pulls


async def test_after_a_loss_the_next_watermark_is_not_believed(mesh: Mesh, redis: Redis) -> None:
    """Events of the lost stream are in ingest alone: the view is first loaded up to it."""
    resolved = await loaded(mesh)
    await redis.flushall()
    await mesh.materialising.repair_once()
    later = NOON + HOUR_US
    for source in ("sales", "weather"):  # the records themselves were lost
        await mesh.folding.handle([watermark_event(source, later)])
    assert (await read(mesh, resolved, question(NOON))).watermark_us == NOON
    await mesh.materialising.repair_once()
    asked = question(later, NOON)
    answer = await read(mesh, resolved, asked)
    assert answer.watermark_us == later
    assert_same_bits(answer, expected(resolved, mesh.ingest.tables, asked))
    await fold(mesh, later, later + HOUR_US)
    assert (await read(mesh, resolved, question(later))).watermark_us == later + HOUR_US


def with_policy(source: dict[str, Any], policy: str) -> dict[str, Any]:
    return {**source, "spec": {**source["spec"], "on_store_failure": policy}}


class Away:
    """A store that does not answer."""

    async def read(self, wanted: Any) -> Any:
        raise Unavailable("ONLINE_STORE_UNAVAILABLE", "away")


@pytest.mark.parametrize("policy", ["default", "stale", "unavailable"])
async def test_a_store_that_is_away_is_what_the_view_declares(mesh: Mesh, policy: str) -> None:
    mesh.ingest.tables = tables()
    declared = [with_policy(SALES, policy), with_policy(WEATHER, policy), *VIEWS[2:]]
    resolved = await mesh.declare(declared, SET)
    await mesh.materialise(resolved, NOON)
    asked = question(NOON)
    before = await read(mesh, resolved, asked)
    sold, items = (resolved.plan.names.index(n) for n in ("sales.count_day", "basket.items"))
    mesh.reading._store = Away()  # pyright: ignore[reportAttributeAccessIssue]
    if policy == "unavailable":
        with pytest.raises(Unavailable) as caught:
            await read(mesh, resolved, asked)
        assert caught.value.reason == "FEATURES_UNAVAILABLE"
        return
    answer = await read(mesh, resolved, asked)
    assert answer.states[0, items] == PRESENT
    if policy == "stale":
        assert answer.vectors[0, sold] == before.vectors[0, sold]
        assert answer.states[0, sold] == STALE
        with pytest.raises(Unavailable):  # never read before: nothing is made up
            await read(mesh, resolved, question(NOON, shops=["unseen"]))
    else:
        assert answer.vectors[0, sold] == resolved.plan.defaults[sold]
        assert answer.states[0, sold] == DEFAULTED


async def test_a_new_version_of_a_view_leaves_the_set_that_pinned_the_old(mesh: Mesh) -> None:
    resolved = await loaded(mesh)
    wider = {**WEATHER, "spec": {**WEATHER["spec"], "ttl": "5h"}}
    await mesh.definitions.apply_view("default", "weather", wider, validate_only=False)
    same = await mesh.definitions.resolved("default", "purchase", resolved.version)
    assert same.keys["weather"].version == 1
    again = await mesh.declare([], SET)
    assert (again.version, again.keys["weather"].version) == (2, 2)
    assert again.plan.schema_hash != resolved.plan.schema_hash


async def test_what_another_process_declares_is_folded_soon(mesh: Mesh) -> None:
    mesh.ingest.tables = tables()
    other = assemble(mesh.definitions._database, mesh.redis, IngestStandIn())
    assert await other.definitions.live_views("default", "sales") == []
    await mesh.declare(VIEWS, SET)
    other.clock.advance(2)

    async def seen() -> Any:
        return await other.definitions.live_views("default", "sales")

    await eventually(seen)


async def test_known_definitions_serve_while_the_database_is_away(mesh: Mesh) -> None:
    resolved = await loaded(mesh)

    class Gone:
        def read(self) -> Any:
            raise Unavailable("DATABASE_UNAVAILABLE", "away")

    mesh.definitions._database = Gone()  # pyright: ignore[reportAttributeAccessIssue]
    mesh.clock.advance(60)
    found = await mesh.definitions.resolved("default", "purchase")
    assert found.plan.schema_hash == resolved.plan.schema_hash
    await read(mesh, found, question(NOON))
