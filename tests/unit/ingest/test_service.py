"""The service as a process of its own, on real engines, through the public client."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
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
from volary_kit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    VolaryError,
)
from volary_kit.identity import KEY_ISSUER, SigningKey, mint_api_key, write_jwks
from volary_kit.streams import SOURCE_EVENTS
from volary_kit.testing import eventually

FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
MAY = datetime(2013, 5, 1, tzinfo=UTC)


class Process:
    """Ingest on a port of its own, started and killed at will."""

    def __init__(self, environment: dict[str, str], port: int, key: SigningKey) -> None:
        self._environment = environment
        self._address = f"127.0.0.1:{port}"
        self._key = key
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "volary_ingest", env=os.environ | self._environment
        )
        request = pb.ListSourcesRequest(parent="projects/default")

        async def answers() -> bool:
            try:
                await tenant.client.ingest.ListSources(request, timeout=2)
            except (Unavailable, DeadlineExceeded):
                return False
            return True

        async with self.tenant("default") as tenant:
            await eventually(answers, within_s=60, what="ingest")

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    @asynccontextmanager
    async def tenant(self, project: str) -> AsyncIterator[Tenant]:
        roles, clock = ["operator"], SystemClock()
        key = mint_api_key(self._key, "tester", roles, project=project, life_s=3600, clock=clock)
        async with AsyncClient(self._address, key, project=project) as client:
            yield Tenant(client)


class Tenant:
    """One project: each test has its own, so that they share a process."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    def name(self, source: str, *more: str) -> str:
        return self.client.name("sources", source, *more)

    async def apply(self, source: str, *rules: dict[str, Any]) -> Any:
        (document,) = read_documents(FLIGHTS / f"source-{source}.yaml")
        document.data["spec"]["contract"].extend(rules)
        request = pb.ApplySourceRequest()
        request.source.name = self.name(source)
        request.source.document.update(document.data)
        return await self.client.ingest.ApplySource(request)

    async def start_pull(self, source: str) -> Any:
        request = pb.StartPullRequest(source=self.name(source))
        request.until.FromDatetime(MAY)
        return await self.client.ingest.StartPull(request)

    async def pull(self, source: str) -> pb.PullResponse:
        return await self.client.wait(await self.start_pull(source), pb.PullResponse)


@pytest.fixture(scope="module")
async def process(
    databases: Any,
    redis_url: str,
    temporal_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Process]:
    folder, url = tmp_path_factory.mktemp("ingest"), await databases.fresh("ingest")
    key, port = SigningKey.generate("edge"), free_port()
    write_jwks(folder / "jwks.json", [key.public_jwk(KEY_ISSUER)])
    environment = {
        "VOLARY_INGEST_PORT": str(port),
        "VOLARY_INGEST_DATABASE_URL": url,
        "VOLARY_INGEST_REDIS_URL": redis_url,
        "VOLARY_INGEST_TEMPORAL_ADDRESS": temporal_address,
        "VOLARY_INGEST_JWKS_FILE": str(folder / "jwks.json"),
        "VOLARY_INGEST_DATA_DIR": str(folder / "data"),
    }
    process = Process(environment, port, key)
    try:
        await process.start()
        yield process
    finally:
        await process.end(signal.SIGKILL)
        await databases.drop(url)


@pytest.fixture
async def tenant(process: Process, request: pytest.FixtureRequest) -> AsyncIterator[Tenant]:
    project = request.function.__name__.replace("_", "-")[:60]
    async with process.tenant(project) as tenant:
        yield tenant


async def test_the_life_of_a_source(tenant: Tenant) -> None:
    for name in ("landings", "planes", "airports", "weather"):
        applied = await tenant.apply(name)
        assert applied.revision == 1
        assert (await tenant.apply(name)).etag == applied.etag
    first = await tenant.pull("landings")
    assert first.batch.read_rows == 108846
    assert first.batch.accepted_rows == first.snapshot.rows == 105202
    assert first.batch.quarantined_rows == 3644
    again = await tenant.pull("landings")
    assert again.snapshot.name == first.snapshot.name
    assert again.batch.accepted_rows == 0

    table = await tenant.client.read_snapshot("landings")
    known = table["known_at"].to_pylist()
    assert table.num_rows == 105202
    assert known == sorted(known)
    assert known[-1] < MAY

    page = await tenant.client.ingest.ListQuarantinedRecords(
        pb.ListQuarantinedRecordsRequest(parent=tenant.name("landings"), page_size=2)
    )
    assert [record.rule for record in page.records] == ["never_landed"] * 2
    assert page.next_page_token


async def test_pushed_records_are_published(tenant: Tenant, redis: Redis) -> None:
    for name in ("landings", "planes", "airports"):
        await tenant.apply(name)
    for name in ("planes", "airports"):
        await tenant.pull(name)
    record = {
        "time_hour": "2013-05-01T10:00:00Z", "minute": 15, "carrier": "UA", "flight": "1545",
        "tailnum": "N14228", "origin": "EWR", "dest": "IAH", "distance": 1400.0,
        "sched_dep_time": 615, "sched_arr_time": 819, "dep_delay": "2", "arr_delay": "NA",
    }  # fmt: skip
    records = [record, record | {"arr_delay": "11"}]
    pushed = await tenant.client.push("landings", records, watermark=MAY)
    assert (pushed.accepted, pushed.quarantined) == (1, 1)
    assert pushed.watermark.ToDatetime(UTC) == MAY

    async def published() -> bool:
        return await redis.xlen(SOURCE_EVENTS) == 2

    await eventually(published, what="record and watermark")


async def test_kill_9_in_the_middle_of_a_pull_loses_and_doubles_nothing(
    process: Process, tenant: Tenant
) -> None:
    for name in ("landings", "planes", "airports"):
        await tenant.apply(name)
    operation = await tenant.start_pull("landings")

    async def storing() -> bool:
        request = pb.ListBatchesRequest(parent=tenant.name("planes"))
        return bool((await tenant.client.ingest.ListBatches(request)).batches)

    await eventually(storing, what="the last of its references")
    landings = pb.GetSourceRequest(name=tenant.name("landings"))
    assert not (await tenant.client.ingest.GetSource(landings)).HasField("cursor")
    assert await process.end(signal.SIGKILL) == -signal.SIGKILL
    await process.start()
    pulled = await tenant.client.wait(operation, pb.PullResponse)
    assert pulled.snapshot.rows == 105202
    table = await tenant.client.read_snapshot("landings")
    assert len(set(table["record_id"].to_pylist())) == table.num_rows == 105202


async def test_it_drains_and_comes_back(process: Process, tenant: Tenant) -> None:
    applied = await tenant.apply("planes")
    assert await process.end() == 0
    await process.start()
    found = await tenant.client.ingest.GetSource(pb.GetSourceRequest(name=applied.name))
    assert found == applied


def bad_requests(tenant: Tenant) -> Iterator[tuple[Any, str]]:
    none, planes = tenant.name("none"), tenant.name("planes")
    yield pb.GetSourceRequest(name="x"), "NAME_MALFORMED"
    yield pb.GetSourceRequest(name=none), "SOURCE_NOT_FOUND"
    yield pb.GetSourceRequest(name="projects/other/sources/planes"), "RESOURCE_NOT_FOUND"
    yield pb.ListBatchesRequest(parent=none), "SOURCE_NOT_FOUND"
    yield pb.ListBatchesRequest(parent=planes, page_token="?"), "PAGE_TOKEN_INVALID"
    yield pb.StartPullRequest(source=none), "SOURCE_NOT_FOUND"
    yield pb.GetSnapshotRequest(name=f"{planes}/snapshots/latest"), "SNAPSHOT_NOT_FOUND"
    yield pb.PushRecordsRequest(source=none), "SOURCE_NOT_FOUND"
    yield pb.ReplayQuarantinedRecordRequest(name=f"{planes}/quarantine/x"), "NAME_MALFORMED"
    missing = pb.ReplayQuarantinedRecordRequest(name=f"{planes}/quarantine/9")
    yield missing, "QUARANTINED_RECORD_NOT_FOUND"
    other = pb.ApplySourceRequest()
    other.source.name = planes
    yield other, "DOCUMENT_INVALID"


async def test_bad_requests_have_the_right_answer(tenant: Tenant) -> None:
    await tenant.apply("planes")
    for request, reason in bad_requests(tenant):
        call = getattr(tenant.client.ingest, type(request).__name__.removesuffix("Request"))
        with pytest.raises(VolaryError) as refused:
            await call(request)
        assert refused.value.reason == reason, request


async def test_a_column_that_is_not_there_is_named(tenant: Tenant) -> None:
    await tenant.apply("planes")
    await tenant.pull("planes")
    name = tenant.name("planes", "snapshots", "latest")
    request = pb.ReadSnapshotRequest(name=name, columns=["wings"])
    with pytest.raises(InvalidArgument) as refused:
        async for _piece in tenant.client.ingest.ReadSnapshot(request):
            pass
    assert refused.value.reason == "COLUMN_UNKNOWN"
    assert "columns" in refused.value.violations


async def test_a_pull_that_a_rule_halts_fails_with_the_rule(tenant: Tenant) -> None:
    rule = {"name": "few", "check": "row_count", "max": 10, "severity": "halt"}
    await tenant.apply("planes", rule)
    with pytest.raises(FailedPrecondition) as refused:
        await tenant.pull("planes")
    assert refused.value.reason == "CONTRACT_HALTED"
    assert refused.value.metadata["rule"] == "few"
