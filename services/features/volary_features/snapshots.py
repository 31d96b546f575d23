"""Snapshots of sources, read from ingest."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import polars as pl
import pyarrow as pa
from volary.ingest.v1 import ingest_service_pb2 as pb
from volary.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from volary.ingest.v1.source_pb2 import Snapshot, Source
from volary_kit.errors import DataLoss, FailedPrecondition, Unavailable
from volary_kit.timestamps import from_us, to_us
from volary_longrunning.operations_pb2 import WaitOperationRequest
from volary_longrunning.operations_pb2_grpc import OperationsStub

LATEST = "latest"
WAIT_S = 30


@dataclass(frozen=True)
class SourceTable:
    """Rows of one snapshot."""

    snapshot: str
    rows: pl.DataFrame


class Snapshots:
    """Reads snapshots over gRPC; what ingest answers with is passed on."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ingest = IngestServiceStub(channel)
        self._operations = OperationsStub(channel)

    async def cursor_us(self, project: str, source: str) -> int:
        """Return the bound before which a source has been pulled without a gap.

        Raises FailedPrecondition `SOURCE_NOT_PULLED` when there is none.
        """
        name = f"projects/{project}/sources/{source}"
        found: Source = await self._ingest.GetSource(pb.GetSourceRequest(name=name))
        if not found.HasField("cursor"):
            raise FailedPrecondition(
                "SOURCE_NOT_PULLED", f"source {source} was never pulled", {"source": name}
            )
        return to_us(found.cursor)

    async def pull(self, project: str, source: str, until_us: int) -> None:
        """Have ingest put everything known before an instant into its newest snapshot.

        Raises Unavailable `PULL_FAILED` when that did not work.
        """
        request = pb.StartPullRequest(
            source=f"projects/{project}/sources/{source}",
            until=from_us(until_us),
            request_id=str(uuid.uuid4()),
        )
        operation = await self._ingest.StartPull(request)
        while not operation.done:
            wait = WaitOperationRequest(name=operation.name)
            operation = await self._operations.WaitOperation(wait, timeout=WAIT_S)
        if operation.HasField("error"):
            raise Unavailable(
                "PULL_FAILED", f"source {source}: {operation.error.message}", retry_after_s=1.0
            )

    async def tables(
        self,
        project: str,
        columns: Mapping[str, Sequence[str]],
        wanted: Mapping[str, str],
        known_until_us: int | None,
    ) -> dict[str, SourceTable]:
        """Return the rows of each source that were known before `known_until_us`.

        `columns` are the columns by source; `wanted` names the snapshot of a source, by id or
        name; one that is not named is read at its newest.
        """
        return {
            source: await self.table(
                project, source, names, wanted.get(source, LATEST), known_until_us
            )
            for source, names in columns.items()
        }

    async def table(
        self,
        project: str,
        source: str,
        columns: Sequence[str],
        snapshot: str,
        known_until_us: int | None,
    ) -> SourceTable:
        """Return the rows of one snapshot."""
        if "/" not in snapshot:
            snapshot = f"projects/{project}/sources/{source}/snapshots/{snapshot}"
        found: Snapshot = await self._ingest.GetSnapshot(pb.GetSnapshotRequest(name=snapshot))
        request = pb.ReadSnapshotRequest(name=found.name, columns=columns)
        if known_until_us is not None:
            request.known_until.CopyFrom(from_us(known_until_us))
        chunks = [chunk.arrow_ipc async for chunk in self._ingest.ReadSnapshot(request)]
        return SourceTable(
            snapshot=found.name,
            rows=await asyncio.to_thread(_frame, b"".join(chunks), found.name),
        )


def _frame(data: bytes, name: str) -> pl.DataFrame:
    try:
        with pa.ipc.open_stream(data) as reader:
            found = pl.from_arrow(reader.read_all())
    except pa.ArrowInvalid as error:
        raise DataLoss(
            "SNAPSHOT_UNREADABLE", f"{name} is no Arrow stream", {"snapshot": name}
        ) from error
    assert isinstance(found, pl.DataFrame)
    return found
