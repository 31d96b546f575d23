from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from redis.asyncio import Redis
from volary.events.v1 import event_pb2
from volary_ingest.domain.snapshot import DataFile
from volary_ingest.store import SourceKey
from volary_ingest.store.frames import Frames
from volary_kit.errors import Aborted, FailedPrecondition, NotFound
from volary_kit.outbox import Relay
from volary_kit.pages import Page
from volary_kit.streams import SOURCE_EVENTS, Publisher

DAY_US = 86_400_000_000
START_US = 1_577_836_800_000_000  # 2020-01-01T00:00:00Z
KEY = SourceKey("default", "parcels")


def until(day: int) -> int:
    """Midnight after that day of January 2020."""
    return START_US + day * DAY_US


async def test_a_pull_takes_what_was_known_before_the_bound(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [new_parcel(n, day=n) for n in range(1, 6)]
    first = await rig.pull(until_us=until(2))
    assert (first.batch.read, first.batch.accepted) == (2, 2)
    assert first.snapshot.rows == 2
    second = await rig.pull(until_us=until(4))
    assert (second.batch.read, second.batch.accepted) == (2, 2)
    assert second.snapshot.rows == 4
    assert (await rig.rows())["record_id"].to_list() == ["1|OSL", "2|OSL", "3|OSL", "4|OSL"]
    assert (await rig.catalog.source(KEY)).cursor_us == until(4)


async def test_the_same_pull_twice_adds_nothing(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [new_parcel(n, day=n) for n in (1, 2, 3)]
    first = await rig.pull(until_us=until(9))
    counts = [await rig.count(t) for t in ("batches", "files", "snapshots", "records")]
    again = await rig.pull(until_us=until(9))
    assert again.snapshot.id == first.snapshot.id
    assert (again.batch.id, again.batch.accepted) == ("", 0)
    assert [await rig.count(t) for t in ("batches", "files", "snapshots", "records")] == counts


async def test_a_bound_that_is_not_given_means_everything(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [new_parcel(n, day=n) for n in (1, 2)]
    assert (await rig.pull()).batch.accepted == 2
    rig.tables["parcels"].append(new_parcel(3, day=3))
    assert (await rig.pull()).batch.accepted == 1
    assert (await rig.pull()).batch.read == 0


async def test_a_bound_below_the_cursor_does_not_move_it_back(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [new_parcel(n, day=n) for n in (1, 2)]
    await rig.pull(until_us=until(9))
    await rig.pull(until_us=until(1))
    assert (await rig.catalog.source(KEY)).cursor_us == until(9)


async def test_what_it_refers_to_is_pulled_first(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [new_parcel(1)]
    await rig.pull(until_us=until(9))
    assert (await rig.rows())["zone"].to_list() == ["Europe/Oslo"]
    assert rig.stages.index("reading hubs") < rig.stages.index("reading parcels")


async def test_a_reference_without_rows_is_named(rig: Any, new_parcel: Any) -> None:
    rig.tables |= {"hubs": [], "parcels": [new_parcel(1)]}
    with pytest.raises(FailedPrecondition) as refused:
        await rig.pull()
    assert refused.value.reason == "REFERENCE_EMPTY"
    assert refused.value.metadata["reference"] == "hubs"
    assert (await rig.rows("hubs")).height == 0


async def test_sources_that_refer_to_each_other_are_refused(rig: Any) -> None:
    document = (await rig.catalog.source(SourceKey("default", "hubs"))).document
    rule = {
        "name": "back",
        "check": "references",
        "column": "hub",
        "severity": "warn",
        "source": "parcels",
        "key": "hub",
    }
    document["spec"]["contract"] = [rule]
    await rig.catalog.apply(SourceKey("default", "hubs"), document, validate_only=False)
    with pytest.raises(FailedPrecondition) as refused:
        await rig.pull()
    assert refused.value.reason == "SOURCE_CYCLE"


async def test_a_source_of_another_project_does_not_exist(rig: Any) -> None:
    with pytest.raises(NotFound):
        await rig.pulls.run(SourceKey("other", "parcels"), None, rig.progress)


async def test_what_is_bad_is_put_aside_once_with_its_reason(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [
        new_parcel(1),
        new_parcel(2, weight="900"),
        new_parcel(3, arrived="NA"),
        new_parcel(4),
        new_parcel(5),
    ]
    batch = (await rig.pull(until_us=until(9))).batch
    assert (batch.read, batch.accepted, batch.quarantined) == (5, 3, 2)
    found = await rig.catalog.quarantine(KEY, Page(10), "")
    assert {(each.rule, each.record["number"]) for each in found} == {
        ("weight_plausible", "2"),
        ("arrived", "3"),
    }
    only = await rig.catalog.quarantine(KEY, Page(10), "arrived")
    assert [each.reason for each in only] == ["arrived_at is missing"]


async def test_a_broken_halt_rule_takes_nothing(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [new_parcel(n, weight="900") for n in range(3)] + [new_parcel(4)]
    with pytest.raises(FailedPrecondition) as refused:
        await rig.pull(until_us=until(9))
    assert refused.value.reason == "CONTRACT_HALTED"
    assert refused.value.metadata["rule"] == "mostly_good"
    assert (await rig.catalog.source(KEY)).cursor_us is None
    assert await rig.count("records WHERE source = 'parcels'") == 0
    (batch,) = await rig.catalog.batches(KEY, Page(10))
    assert batch.is_halted
    rig.tables["parcels"] = [new_parcel(n) for n in range(4)]
    assert (await rig.pull(until_us=until(9))).batch.accepted == 4


class CrashingFrames(Frames):
    """Writes its file whole and dies before anything is committed."""

    crashes = 1

    def write(self, frame: pl.DataFrame, batch: str) -> DataFile:
        file = super().write(frame, batch)
        if "weight" in frame.columns and self.crashes:
            self.crashes -= 1
            raise KeyboardInterrupt
        return file


async def test_a_crash_between_data_and_cursor_gives_the_same_rows_once(
    make_rig: Callable[..., Awaitable[Any]], new_parcel: Any, tmp_path: Path
) -> None:
    rig = await make_rig(CrashingFrames)
    rig.tables["parcels"] = [new_parcel(n, day=n) for n in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        await rig.pull(until_us=until(9))
    written = set((tmp_path / "files").rglob("*"))
    assert (await rig.catalog.source(KEY)).cursor_us is None
    assert await rig.count("files WHERE source = 'parcels'") == 0
    pulled = await rig.pull(until_us=until(9))
    assert pulled.batch.accepted == 3
    assert (await rig.rows())["record_id"].to_list() == ["1|OSL", "2|OSL", "3|OSL"]
    assert set((tmp_path / "files").rglob("*")) == written  # the orphan became the file


async def test_two_pulls_at_once_take_each_row_once(rig: Any, new_parcel: Any) -> None:
    rig.tables["parcels"] = [new_parcel(n, day=1 + n % 20) for n in range(500)]
    await rig.pull("hubs")
    ends = await asyncio.gather(
        *(rig.pull(until_us=until(30)) for _ in range(4)), return_exceptions=True
    )
    losers = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(end, Aborted) for end in losers)
    assert len(losers) < 4
    assert sorted((await rig.rows())["number"].to_list()) == list(range(500))
    assert len(await rig.catalog.batches(KEY, Page(10))) == 1  # a loser leaves no trace


async def test_the_same_rows_make_the_same_snapshot_elsewhere(
    make_rig: Callable[..., Awaitable[Any]], new_parcel: Any, tmp_path: Path
) -> None:
    ids = []
    for rows in ([3, 1, 2], [1, 2, 3]):
        rig = await make_rig(lambda folder, rows=rows: Frames(folder / str(rows[0])))
        rig.tables["parcels"] = [new_parcel(n, day=n) for n in rows]
        ids.append((await rig.pull(until_us=until(9))).snapshot.id)
    assert ids[0] == ids[1]


async def test_a_snapshot_does_not_tell_what_was_pushed_from_what_was_pulled(
    make_rig: Callable[..., Awaitable[Any]], new_parcel: Any
) -> None:
    rows, ids = [new_parcel(n, day=n) for n in range(1, 6)], []
    for pushed in ([], [rows[1], rows[3]]):
        rig = await make_rig()
        await rig.pull("hubs")
        await rig.pushes.push(KEY, pushed, None)
        rig.tables["parcels"] = rows
        ids.append((await rig.pull(until_us=until(9))).snapshot.id)
    assert ids[0] == ids[1]


async def test_a_column_cannot_change_its_type(
    rig: Any, new_parcel: Any, new_document: Callable[[], dict[str, Any]]
) -> None:
    rig.tables["parcels"] = [new_parcel(1)]
    await rig.pull(until_us=until(5))
    changed = new_document()
    changed["spec"]["fields"][4]["type"] = "string"
    changed["spec"]["contract"] = []
    await rig.catalog.apply(KEY, changed, validate_only=False)
    rig.tables["parcels"].append(new_parcel(2, day=7))
    with pytest.raises(FailedPrecondition) as refused:
        await rig.pull(until_us=until(9))
    assert refused.value.reason == "SCHEMA_CHANGED"
    assert (await rig.rows()).height == 1


async def test_a_new_column_is_null_in_rows_from_before(
    rig: Any, new_parcel: Any, new_document: Callable[[], dict[str, Any]]
) -> None:
    rig.tables["parcels"] = [new_parcel(1)]
    await rig.pull(until_us=until(5))
    changed = new_document()
    changed["spec"]["fields"].append({"name": "colour", "type": "string"})
    await rig.catalog.apply(KEY, changed, validate_only=False)
    rig.tables["parcels"].append(new_parcel(2, day=7, colour="red"))
    await rig.pull(until_us=until(9))
    assert (await rig.rows())["colour"].to_list() == [None, "red"]


async def test_a_published_pull_sends_each_new_record_once(
    rig: Any, new_parcel: Any, redis: Redis
) -> None:
    rig.tables["parcels"] = [new_parcel(n, day=n) for n in (1, 2)]
    await rig.pull(until_us=until(9), publish=True)
    await rig.pull(until_us=until(9), publish=True)
    relay = Relay(rig.database, Publisher(redis))
    while await relay.step():
        pass
    entries: Any = await redis.xrange(SOURCE_EVENTS)
    events = [event_pb2.Event.FromString(fields[b"e"]) for _, fields in entries]
    assert [event.source_record.record_id for event in events] == ["1|OSL", "2|OSL"]
    assert events[0].source_record.record.fields["weight"].number_value == 2.25
    assert events[0].known_at.ToJsonString() == "2020-01-01T12:00:00Z"
