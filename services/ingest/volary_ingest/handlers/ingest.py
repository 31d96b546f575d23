"""`volary.ingest.v1.IngestService`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from volary.ingest.v1 import ingest_service_pb2 as pb
from volary.ingest.v1 import ingest_service_pb2_grpc, source_pb2
from volary_kit.database import Database
from volary_kit.errors import InvalidArgument
from volary_kit.names import parse, project_of
from volary_kit.operations import OperationContext, Operations
from volary_kit.pages import cut, page_of
from volary_kit.timestamps import to_us
from volary_longrunning import operations_pb2

from volary_ingest.catalog import Catalog
from volary_ingest.handlers import Context
from volary_ingest.handlers.messages import (
    batch_message,
    document_of,
    outcome_messages,
    quarantined_message,
    snapshot_message,
    source_message,
    text_rows,
    time_message,
)
from volary_ingest.pulls import Pulls
from volary_ingest.pushes import Pushes
from volary_ingest.store import SourceKey

SOURCE = "projects/{project}/sources/{source}"
SNAPSHOT = SOURCE + "/snapshots/{snapshot}"
QUARANTINED = SOURCE + "/quarantine/{record}"
START_PULL = "StartPull"
MAX_DIGITS = 18


class IngestHandler(ingest_service_pb2_grpc.IngestServiceServicer):
    """Answers for sources and their records."""

    def __init__(
        self,
        catalog: Catalog,
        pulls: Pulls,
        pushes: Pushes,
        operations: Operations,
        database: Database,
    ) -> None:
        self._catalog = catalog
        self._pulls = pulls
        self._pushes = pushes
        self._operations = operations
        self._database = database
        operations.register(START_PULL, self.pull)

    async def ApplySource(
        self, request: pb.ApplySourceRequest, context: Context
    ) -> source_pb2.Source:
        row = await self._catalog.apply(
            _source(request.source.name, "source.name"),
            document_of(request.source),
            validate_only=request.validate_only,
        )
        return source_message(row)

    async def GetSource(self, request: pb.GetSourceRequest, context: Context) -> source_pb2.Source:
        return source_message(await self._catalog.source(_source(request.name, "name")))

    async def ListSources(
        self, request: pb.ListSourcesRequest, context: Context
    ) -> pb.ListSourcesResponse:
        page = page_of(request, str)
        rows = await self._catalog.sources(project_of(request.parent), page)
        shown, token = cut(rows, page, lambda row: row.source)
        return pb.ListSourcesResponse(
            sources=[source_message(row) for row in shown], next_page_token=token
        )

    async def StartPull(
        self, request: pb.StartPullRequest, context: Context
    ) -> operations_pb2.Operation:
        await self._catalog.source(_source(request.source, "source"))
        _optional_us(request, "until")
        async with self._database.transaction() as transaction:
            return await self._operations.start(
                transaction, method=START_PULL, request=request, metadata=pb.PullMetadata()
            )

    async def pull(
        self, operation: OperationContext, request: pb.StartPullRequest
    ) -> pb.PullResponse:
        """Carry out a pull that was started."""
        key = _source(request.source, "source")

        async def progress(read_rows: int, stage: str) -> None:
            await operation.progress(pb.PullMetadata(read_rows=read_rows, stage=stage))

        pulled = await self._pulls.run(
            key, _optional_us(request, "until"), progress, publish=request.publish
        )
        return pb.PullResponse(
            batch=batch_message(key, pulled.batch), snapshot=snapshot_message(key, pulled.snapshot)
        )

    async def PushRecords(
        self, request: pb.PushRecordsRequest, context: Context
    ) -> pb.PushRecordsResponse:
        report = await self._pushes.push(
            _source(request.source, "source"),
            text_rows(request.records),
            _optional_us(request, "watermark"),
        )
        return pb.PushRecordsResponse(
            accepted=report.accepted,
            duplicates=report.duplicates,
            quarantined=len(report.intake.aside),
            rules=outcome_messages(each for each in report.intake.outcomes if each.rows),
            watermark=time_message(report.watermark_us),
        )

    async def ValidateRecords(
        self, request: pb.ValidateRecordsRequest, context: Context
    ) -> pb.ValidateRecordsResponse:
        intake = await self._pushes.check(
            _source(request.source, "source"), text_rows(request.records)
        )
        return pb.ValidateRecordsResponse(
            accepted=intake.accepted.height,
            quarantined=len(intake.aside),
            rules=outcome_messages(intake.outcomes),
        )

    async def ListBatches(
        self, request: pb.ListBatchesRequest, context: Context
    ) -> pb.ListBatchesResponse:
        key, page = _source(request.parent, "parent"), page_of(request, int)
        rows = await self._catalog.batches(key, page)
        shown, token = cut(rows, page, lambda row: row.position)
        return pb.ListBatchesResponse(
            batches=[batch_message(key, row) for row in shown], next_page_token=token
        )

    async def ListQuarantinedRecords(
        self, request: pb.ListQuarantinedRecordsRequest, context: Context
    ) -> pb.ListQuarantinedRecordsResponse:
        key, page = _source(request.parent, "parent"), page_of(request, int)
        rows = await self._catalog.quarantine(key, page, request.rule)
        shown, token = cut(rows, page, lambda row: row.position)
        return pb.ListQuarantinedRecordsResponse(
            records=[quarantined_message(key, row) for row in shown], next_page_token=token
        )

    async def ReplayQuarantinedRecord(
        self, request: pb.ReplayQuarantinedRecordRequest, context: Context
    ) -> source_pb2.QuarantinedRecord:
        ids = parse(QUARANTINED, request.name, field="name")
        key = SourceKey(ids["project"], ids["source"])
        record = await self._pushes.replay(key, _position(ids["record"]))
        return quarantined_message(key, record)

    async def GetSnapshot(
        self, request: pb.GetSnapshotRequest, context: Context
    ) -> source_pb2.Snapshot:
        key, snapshot = _snapshot(request.name)
        return snapshot_message(key, await self._catalog.snapshot(key, snapshot))

    async def ListSnapshots(
        self, request: pb.ListSnapshotsRequest, context: Context
    ) -> pb.ListSnapshotsResponse:
        key, page = _source(request.parent, "parent"), page_of(request, int)
        rows = await self._catalog.snapshots(key, page)
        shown, token = cut(rows, page, lambda row: row[0])
        return pb.ListSnapshotsResponse(
            snapshots=[snapshot_message(key, row) for _, row in shown], next_page_token=token
        )

    async def ReadSnapshot(
        self, request: pb.ReadSnapshotRequest, context: Context
    ) -> AsyncIterator[pb.ReadSnapshotResponse]:
        key, snapshot = _snapshot(request.name)
        bounds = _optional_us(request, "known_from"), _optional_us(request, "known_until")
        async for chunk in self._catalog.rows(key, snapshot, list(request.columns), *bounds):
            yield pb.ReadSnapshotResponse(arrow_ipc=chunk)


def _source(name: str, field: str) -> SourceKey:
    ids = parse(SOURCE, name, field=field)
    return SourceKey(ids["project"], ids["source"])


def _snapshot(name: str) -> tuple[SourceKey, str]:
    ids = parse(SNAPSHOT, name, field="name")
    return SourceKey(ids["project"], ids["source"]), ids["snapshot"]


def _position(record: str) -> int:
    if not record.isascii() or not record.isdigit() or len(record) > MAX_DIGITS:
        raise InvalidArgument("NAME_MALFORMED", "a record's id is a number", field="name")
    return int(record)


def _optional_us(
    request: pb.StartPullRequest | pb.PushRecordsRequest | pb.ReadSnapshotRequest, field: str
) -> int | None:
    stamp: Timestamp = getattr(request, field)
    return to_us(stamp, field) if request.HasField(field) else None  # pyright: ignore[reportArgumentType]
