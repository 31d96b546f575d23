from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from volary.events.v1 import event_pb2
from volary_ingest.store import SourceKey
from volary_kit.errors import FailedPrecondition
from volary_kit.outbox import Relay
from volary_kit.pages import Page
from volary_kit.streams import SOURCE_EVENTS, Publisher

DAY_US = 86_400_000_000
START_US = 1_577_836_800_000_000  # 2020-01-01T00:00:00Z
KEY = SourceKey("default", "parcels")


@pytest.fixture
async def pushed(rig: Any) -> Any:
    await rig.pull("hubs")
    return rig


async def events_of(rig: Any, redis: Redis) -> list[event_pb2.Event]:
    relay = Relay(rig.database, Publisher(redis))
    while await relay.step():
        pass
    entries: Any = await redis.xrange(SOURCE_EVENTS)
    return [event_pb2.Event.FromString(fields[b"e"]) for _, fields in entries]


async def test_records_are_taken_once_whoever_repeats_them(
    pushed: Any, new_parcel: Any, redis: Redis
) -> None:
    rows = [new_parcel(n) for n in (1, 2, 3)]
    first = await pushed.pushes.push(KEY, rows, None)
    again = await pushed.pushes.push(KEY, [*rows, new_parcel(4)], None)
    assert (first.accepted, first.duplicates) == (3, 0)
    assert (again.accepted, again.duplicates) == (1, 3)
    events = await events_of(pushed, redis)
    assert [e.source_record.record_id for e in events] == ["1|OSL", "2|OSL", "3|OSL", "4|OSL"]
    assert len({event.id for event in events}) == 4


async def test_a_push_that_brings_nothing_leaves_no_batch(pushed: Any, new_parcel: Any) -> None:
    await pushed.pushes.push(KEY, [new_parcel(1)], None)
    await pushed.pushes.push(KEY, [new_parcel(1)], None)
    assert len(await pushed.catalog.batches(KEY, Page(10))) == 1


async def test_poison_is_put_aside_once_and_the_rest_is_taken(pushed: Any, new_parcel: Any) -> None:
    rows = [new_parcel(1), new_parcel(2, weight="heavy"), new_parcel(3, weight=None)]
    for _attempt in range(2):
        report = await pushed.pushes.push(KEY, rows, None)
        assert len(report.intake.aside) == 1
        counted = report.accepted + report.duplicates + len(report.intake.aside)
        assert counted == report.intake.read == 3
    (aside,) = await pushed.catalog.quarantine(KEY, Page(10), "")
    assert aside.rule == "field_malformed"
    assert aside.reason == "weight is no float64"
    assert aside.record["weight"] == "heavy"


async def test_a_record_with_a_nul_is_put_aside(pushed: Any, new_parcel: Any) -> None:
    report = await pushed.pushes.push(KEY, [new_parcel(1, weight="\0")], None)
    assert [each.rule for each in report.intake.aside] == ["field_malformed"]
    assert len(await pushed.catalog.quarantine(KEY, Page(10), "")) == 1


async def test_pushed_rows_reach_the_next_snapshot(pushed: Any, new_parcel: Any) -> None:
    await pushed.pushes.push(KEY, [new_parcel(1, day=1), new_parcel(5, day=5)], None)
    first = await pushed.pull(until_us=START_US + 3 * DAY_US)
    assert first.snapshot.rows == 1
    second = await pushed.pull(until_us=START_US + 9 * DAY_US)
    assert second.snapshot.rows == 2
    assert await pushed.count("pending_records") == 0
    snapshots = {batch.snapshot for batch in await pushed.catalog.batches(KEY, Page(10))}
    assert None not in snapshots


async def test_pushed_and_pulled_are_one_record_with_the_same_values(
    pushed: Any, new_parcel: Any
) -> None:
    rows = [new_parcel(n, weight=repr(0.1 * n)) for n in (1, 2, 3)]
    await pushed.pushes.push(KEY, rows[:2], None)
    pushed.tables["parcels"] = rows
    batch = (await pushed.pull(until_us=START_US + 9 * DAY_US)).batch
    assert (batch.read, batch.accepted, batch.duplicates) == (3, 1, 2)
    frame = await pushed.rows()
    assert frame["weight"].to_list() == [0.1, 0.2, 0.1 * 3]
    assert frame["record_id"].is_unique().all()


async def test_the_watermark_never_goes_back_and_is_told_once(
    pushed: Any, new_parcel: Any, redis: Redis
) -> None:
    late, early = START_US + 5 * DAY_US, START_US + 2 * DAY_US
    assert (await pushed.pushes.push(KEY, [new_parcel(1)], late)).watermark_us == late
    assert (await pushed.pushes.push(KEY, [new_parcel(2)], early)).watermark_us == late
    assert (await pushed.pushes.push(KEY, [], None)).watermark_us == late
    kinds = [event.WhichOneof("payload") for event in await events_of(pushed, redis)]
    assert kinds == ["source_record", "watermark", "source_record"]


async def test_concurrent_producers_of_the_same_records_take_each_once(
    pushed: Any, new_parcel: Any, redis: Redis
) -> None:
    rows = [new_parcel(n) for n in range(60)]
    reports = await asyncio.gather(
        *(pushed.pushes.push(KEY, rows[n * 10 : n * 10 + 20], None) for n in range(5)),
        *(pushed.pushes.push(KEY, rows[n * 10 : n * 10 + 20], None) for n in range(5)),
    )
    assert sum(report.accepted for report in reports) == 60
    assert len(await events_of(pushed, redis)) == 60


async def test_a_halt_rule_refuses_the_push_and_writes_nothing(
    pushed: Any, new_parcel: Any
) -> None:
    rows = [new_parcel(n, weight="900") for n in range(4)]
    with pytest.raises(FailedPrecondition) as refused:
        await pushed.pushes.push(KEY, rows, START_US)
    assert refused.value.reason == "CONTRACT_HALTED"
    assert await pushed.count("quarantined_records") == 0
    assert (await pushed.pushes.push(KEY, [], None)).watermark_us is None


async def test_checking_writes_nothing(pushed: Any, new_parcel: Any) -> None:
    intake = await pushed.pushes.check(KEY, [new_parcel(1), new_parcel(2, weight="-1")])
    assert (intake.accepted.height, len(intake.aside)) == (1, 1)
    assert await pushed.count("records WHERE source = 'parcels'") == 0
    assert await pushed.count("quarantined_records") == 0


async def test_a_push_before_its_reference_was_pulled_says_so(rig: Any, new_parcel: Any) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await rig.pushes.push(KEY, [new_parcel(1)], None)
    assert refused.value.reason == "REFERENCE_EMPTY"


async def test_a_record_is_taken_in_after_its_rule_was_mended(
    pushed: Any, new_parcel: Any, new_document: Callable[[], dict[str, Any]]
) -> None:
    await pushed.pushes.push(KEY, [new_parcel(1, weight="60")], None)
    (aside,) = await pushed.catalog.quarantine(KEY, Page(10), "")
    with pytest.raises(FailedPrecondition) as refused:
        await pushed.pushes.replay(KEY, aside.position)
    assert refused.value.reason == "STILL_QUARANTINED"
    mended = new_document()
    mended["spec"]["contract"][2]["max"] = 100
    await pushed.catalog.apply(KEY, mended, validate_only=False)
    for _attempt in range(2):
        assert (await pushed.pushes.replay(KEY, aside.position)).replay_us is not None
    assert await pushed.catalog.quarantine(KEY, Page(10), "") == []
    assert (await pushed.pull()).snapshot.rows == 1


async def test_a_time_beside_the_record_can_be_a_field(
    rig: Any, new_document: Callable[[], dict[str, Any]]
) -> None:
    document = new_document()
    spec = document["spec"]
    spec["fields"] = [
        {"name": "number", "type": "int64"},
        {"name": "seen_at", "from": "@known_at", "type": "timestamp"},
    ]
    spec |= {"derive": [], "keys": ["number"], "event_time": "seen_at", "known_at": "seen_at"}
    spec["contract"] = []
    await rig.catalog.apply(KEY, document, validate_only=False)
    row = {"number": "7", "@known_at": "2020-01-01T00:00:00.000001Z"}
    assert (await rig.pushes.push(KEY, [row], None)).accepted == 1
    assert await rig.count("pending_records WHERE known_us = 1577836800000001") == 1
