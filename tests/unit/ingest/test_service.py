"""The service as a process of its own, on real engines, through the public client."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from volary.ingest.v1 import ingest_service_pb2 as pb
from volary_cli.launcher.engines import free_port
from volary_client import AsyncClient
from volary_kit.clock import SystemClock
from volary_kit.documents import read_documents
from volary_kit.errors import FailedPrecondition, InvalidArgument, Unavailable, VolaryError
from volary_kit.identity import KEY_ISSUER, SigningKey, mint_api_key, write_jwks
from volary_kit.streams import SOURCE_EVENTS
from volary_kit.testing import eventually

FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
MAY = datetime(2013, 5, 1, tzinfo=UTC)


class Process:
    """Ingest on a port of its own, started and killed at will."""

    def __init__(self, environment: dict[str, str], port: int, key: str) -> None:
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self.client = AsyncClient(f"127.0.0.1:{port}", key)

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "volary_ingest", env=os.environ | self._environment
        )

        async def answers() -> bool:
            try:
                await self.client.ingest.ListSources(
                    pb.ListSourcesRequest(parent="projects/default")
                )
            except Unavailable:
                return False
            return True

        await eventually(answers, within_s=40, what="ingest")

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    async def apply(self, name: str) -> Any:
        (document,) = read_documents(FLIGHTS / f"source-{name}.yaml")
        request = pb.ApplySourceRequest()
        request.source.name = f"projects/default/sources/{name}"
        request.source.document.update(document.data)
        return await self.client.ingest.ApplySource(request)

    async def pull(self, name: str, until: datetime, **more: Any) -> pb.PullResponse:
        request = pb.StartPullRequest(source=f"projects/default/sources/{name}", **more)
        request.until.FromDatetime(until)
        operation = await self.client.ingest.StartPull(request)
        return await self.client.wait(operation, pb.PullResponse)


@asynccontextmanager
async def running(process: Process) -> AsyncIterator[Process]:
    try:
        await process.start()
        yield process
    finally:
        await process.end(signal.SIGKILL)
        await process.client.close()


@pytest.fixture
async def process(
    make_database: Any, redis_url: str, redis: Redis, temporal_address: str, tmp_path: Path
) -> AsyncIterator[Process]:
    database = await make_database("ingest")
    key, port = SigningKey.generate("edge"), free_port()
    write_jwks(tmp_path / "jwks.json", [key.public_jwk(KEY_ISSUER)])
    environment = {
        "VOLARY_INGEST_PORT": str(port),
        "VOLARY_INGEST_DATABASE_URL": database.url.replace("+asyncpg", ""),
        "VOLARY_INGEST_REDIS_URL": redis_url,
        "VOLARY_INGEST_TEMPORAL_ADDRESS": temporal_address,
        "VOLARY_INGEST_JWKS_FILE": str(tmp_path / "jwks.json"),
        "VOLARY_INGEST_DATA_DIR": str(tmp_path / "data"),
    }
    token = mint_api_key(key, "tester", ["operator"], life_s=3600, clock=SystemClock())
    async with running(Process(environment, port, token)) as process:
        yield process


async def test_the_life_of_a_source(process: Process, redis: Redis) -> None:
    for name in ("landings", "planes", "airports", "weather"):
        applied = await process.apply(name)
        assert applied.revision == 1
        assert (await process.apply(name)).etag == applied.etag
    first = await process.pull("landings", MAY)
    assert first.batch.read_rows == 108846
    assert first.batch.accepted_rows == first.snapshot.rows == 105202
    assert first.batch.quarantined_rows == 3644
    again = await process.pull("landings", MAY)
    assert again.snapshot.name == first.snapshot.name
    assert again.batch.accepted_rows == 0

    table = await process.client.read_snapshot("landings")
    known = table["known_at"].to_pylist()
    assert table.num_rows == 105202
    assert known == sorted(known)
    assert known[-1] < MAY

    assert await redis.xlen(SOURCE_EVENTS) == 0
    record = {
        "time_hour": "2013-05-01T10:00:00Z", "minute": 15, "carrier": "UA", "flight": "1545",
        "tailnum": "N14228", "origin": "EWR", "dest": "IAH", "distance": 1400.0,
        "sched_dep_time": 615, "sched_arr_time": 819, "dep_delay": "2", "arr_delay": "NA",
    }  # fmt: skip
    records = [record, record | {"arr_delay": "11"}]
    pushed = await process.client.push("landings", records, watermark=MAY)
    assert (pushed.accepted, pushed.quarantined) == (1, 1)
    assert pushed.watermark.ToDatetime(UTC) == MAY

    async def published() -> bool:
        return await redis.xlen(SOURCE_EVENTS) == 2

    await eventually(published, what="record and watermark")
    parent = "projects/default/sources/landings"
    page = await process.client.ingest.ListQuarantinedRecords(
        pb.ListQuarantinedRecordsRequest(parent=parent, page_size=2)
    )
    assert [record.rule for record in page.records] == ["never_landed"] * 2
    assert page.next_page_token
    assert await process.end() == 0
    await process.start()


async def test_kill_9_in_the_middle_of_a_pull_loses_and_doubles_nothing(process: Process) -> None:
    for name in ("landings", "planes", "airports"):
        await process.apply(name)
    request = pb.StartPullRequest(source="projects/default/sources/landings")
    request.until.FromDatetime(MAY)
    operation = await process.client.ingest.StartPull(request)

    async def storing() -> bool:
        source = pb.ListBatchesRequest(parent="projects/default/sources/planes")
        return bool((await process.client.ingest.ListBatches(source)).batches)

    await eventually(storing, what="the first of its references")
    assert await process.end(signal.SIGKILL) == -signal.SIGKILL
    await process.start()
    pulled = await process.client.wait(operation, pb.PullResponse)
    assert pulled.snapshot.rows == 105202
    table = await process.client.read_snapshot("landings")
    assert len(set(table["record_id"].to_pylist())) == table.num_rows == 105202


NAME = "projects/default/sources"
BAD_REQUESTS = [
    (pb.GetSourceRequest(name="x"), "NAME_MALFORMED"),
    (pb.GetSourceRequest(name=f"{NAME}/none"), "SOURCE_NOT_FOUND"),
    (pb.GetSourceRequest(name="projects/other/sources/planes"), "RESOURCE_NOT_FOUND"),
    (pb.ListSourcesRequest(parent="projects/default", page_token="?"), "PAGE_TOKEN_INVALID"),
    (pb.ListBatchesRequest(parent=f"{NAME}/none"), "SOURCE_NOT_FOUND"),
    (pb.StartPullRequest(source=f"{NAME}/none"), "SOURCE_NOT_FOUND"),
    (pb.GetSnapshotRequest(name=f"{NAME}/planes/snapshots/latest"), "SNAPSHOT_NOT_FOUND"),
    (pb.PushRecordsRequest(source=f"{NAME}/none"), "SOURCE_NOT_FOUND"),
    (pb.ReplayQuarantinedRecordRequest(name=f"{NAME}/planes/quarantine/x"), "NAME_MALFORMED"),
    (pb.ReplayQuarantinedRecordRequest(name=f"{NAME}/planes/quarantine/9"), "QUARANTINED_RECORD_NOT_FOUND"),
]  # fmt: skip


async def test_bad_requests_have_the_right_answer(process: Process) -> None:
    await process.apply("planes")
    for request, reason in BAD_REQUESTS:
        call = getattr(process.client.ingest, type(request).__name__.removesuffix("Request"))
        with pytest.raises(VolaryError) as refused:
            await call(request)
        assert refused.value.reason == reason, request


async def test_a_column_that_is_not_there_is_named(process: Process) -> None:
    await process.apply("planes")
    await process.pull("planes", MAY)
    request = pb.ReadSnapshotRequest(name=f"{NAME}/planes/snapshots/latest", columns=["wings"])
    with pytest.raises(InvalidArgument) as refused:
        async for _piece in process.client.ingest.ReadSnapshot(request):
            pass
    assert refused.value.reason == "COLUMN_UNKNOWN"
    assert "columns" in refused.value.violations


async def test_a_pull_that_a_rule_halts_fails_with_the_rule(process: Process) -> None:
    request = pb.ApplySourceRequest()
    (document,) = read_documents(FLIGHTS / "source-planes.yaml")
    rule = {"name": "few", "check": "row_count", "max": 10, "severity": "halt"}
    document.data["spec"]["contract"].append(rule)
    request.source.name = f"{NAME}/planes"
    request.source.document.update(document.data)
    await process.client.ingest.ApplySource(request)
    with pytest.raises(FailedPrecondition) as refused:
        await process.pull("planes", MAY)
    assert refused.value.reason == "CONTRACT_HALTED"
    assert refused.value.metadata["rule"] == "few"
