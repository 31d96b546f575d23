"""Rows of long-running operations: the truth about each, also after Temporal forgot it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from volary_longrunning import operations_pb2

from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction

PENDING, RUNNING = "PENDING", "RUNNING"
SUCCEEDED, FAILED, CANCELLED = "SUCCEEDED", "FAILED", "CANCELLED"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})

OPERATIONS = sa.Table(
    "kit_operations",
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text),
    sa.Column("method", sa.Text),
    sa.Column("principal", sa.Text),
    sa.Column("traceparent", sa.Text),
    sa.Column("request_type", sa.Text),
    sa.Column("request", sa.LargeBinary),
    sa.Column("state", sa.Text),
    sa.Column("metadata_type", sa.Text),
    sa.Column("metadata", sa.LargeBinary),
    sa.Column("response_type", sa.Text),
    sa.Column("response", sa.LargeBinary),
    sa.Column("error", sa.LargeBinary),
    sa.Column("cancel_requested", sa.Boolean),
    sa.Column("started", sa.Boolean),
    sa.Column("create_us", sa.BigInteger),
    sa.Column("update_us", sa.BigInteger),
)
C = OPERATIONS.c


@dataclass(frozen=True)
class OperationRow:
    """One operation as it is stored; times in UTC microseconds."""

    id: str
    project: str
    method: str
    principal: str
    traceparent: str
    request_type: str
    request: bytes
    state: str
    metadata_type: str
    metadata: bytes
    response_type: str | None
    response: bytes | None
    error: bytes | None
    cancel_requested: bool
    started: bool
    create_us: int
    update_us: int

    @classmethod
    def of(cls, row: Any) -> Self:
        """Read a result row."""
        return cls(**row._asdict())

    @property
    def is_done(self) -> bool:
        """True when the state will not change any more."""
        return self.state in TERMINAL

    def parsed_request(self) -> Message:
        """Return the request as the message that it was."""
        return message_of(self.request_type, self.request)

    def operation(self, service: str) -> operations_pb2.Operation:
        """Return the operation as its caller sees it."""
        found = operations_pb2.Operation(
            name=f"projects/{self.project}/operations/{service}.{self.id}", done=self.is_done
        )
        if self.metadata_type:
            found.metadata.CopyFrom(_packed(self.metadata_type, self.metadata))
        if self.response is not None and self.response_type is not None:
            found.response.CopyFrom(_packed(self.response_type, self.response))
        if self.error is not None:
            found.error.CopyFrom(Status.FromString(self.error))
        return found


class OperationRows:
    """Queries on the operations of one service."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def insert(self, transaction: Transaction, row: OperationRow) -> OperationRow:
        """Add a row; return the one that is there if the same was asked for before."""
        from sqlalchemy.dialects.postgresql import insert

        values = vars(row)
        await transaction.execute(
            insert(OPERATIONS).values(**values).on_conflict_do_nothing(index_elements=["id"])
        )
        found = await transaction.execute(sa.select(OPERATIONS).where(C.id == row.id))
        return OperationRow.of(found.one())

    async def find(self, operation_id: str, project: str | None = None) -> OperationRow | None:
        """Return a row, of one project if given."""
        query = sa.select(OPERATIONS).where(C.id == operation_id)
        if project is not None:
            query = query.where(C.project == project)
        async with self._database.read() as transaction:
            row = (await transaction.execute(query)).one_or_none()
        return None if row is None else OperationRow.of(row)

    async def page(
        self, project: str, after: tuple[int, str] | None, size: int, *, done: bool | None
    ) -> list[OperationRow]:
        """Return up to `size` rows of a project, newest first, after (create_us, id)."""
        query = sa.select(OPERATIONS).where(C.project == project)
        if done is not None:
            is_done = C.state.in_(sorted(TERMINAL))
            query = query.where(is_done if done else ~is_done)
        if after is not None:
            query = query.where(sa.tuple_(C.create_us, C.id) < sa.tuple_(*after))
        query = query.order_by(C.create_us.desc(), C.id.desc()).limit(size)
        async with self._database.read() as transaction:
            return [OperationRow.of(row) for row in await transaction.execute(query)]

    async def unstarted(self, size: int) -> list[OperationRow]:
        """Return rows that no workflow was started for, oldest first."""
        query = sa.select(OPERATIONS).where(~C.started).order_by(C.create_us).limit(size)
        async with self._database.read() as transaction:
            return [OperationRow.of(row) for row in await transaction.execute(query)]

    async def cancelling(self, size: int) -> list[OperationRow]:
        """Return rows that are to be cancelled and have not ended."""
        query = sa.select(OPERATIONS).where(
            C.cancel_requested, C.started, C.state.not_in(sorted(TERMINAL))
        )
        async with self._database.read() as transaction:
            return [OperationRow.of(row) for row in await transaction.execute(query.limit(size))]

    async def quiet(self, since_us: int, size: int) -> list[OperationRow]:
        """Return rows that have not ended and have not changed since an instant."""
        query = sa.select(OPERATIONS).where(
            C.started, C.state.not_in(sorted(TERMINAL)), C.update_us < since_us
        )
        async with self._database.read() as transaction:
            return [OperationRow.of(row) for row in await transaction.execute(query.limit(size))]

    async def mark_started(self, operation_id: str) -> None:
        """Note that the workflow exists."""
        await self._update(operation_id, started=True)

    async def request_cancel(self, operation_id: str) -> None:
        """Note that the caller wants it to end."""
        await self._update(operation_id, cancel_requested=True)

    async def begin(self, operation_id: str) -> OperationRow | None:
        """Set a row RUNNING unless it has ended; return it, None if there is no such row."""
        await self._update(operation_id, state=RUNNING)
        return await self.find(operation_id)

    async def progress(self, operation_id: str, metadata: Message) -> None:
        """Store progress, unless the operation has ended."""
        await self._update(
            operation_id,
            metadata_type=metadata.DESCRIPTOR.full_name,
            metadata=metadata.SerializeToString(),
        )

    async def succeed(self, operation_id: str, response: Message) -> None:
        """Store the result, unless the operation has ended."""
        await self._update(
            operation_id,
            state=SUCCEEDED,
            response_type=response.DESCRIPTOR.full_name,
            response=response.SerializeToString(),
        )

    async def fail(self, operation_id: str, status: Status, state: str = FAILED) -> None:
        """Store how it failed or that it was cancelled, unless the operation has ended."""
        await self._update(operation_id, state=state, error=status.SerializeToString())

    async def delete(self, operation_id: str) -> None:
        """Delete a row that has ended."""
        async with self._database.transaction() as transaction:
            await transaction.execute(
                sa.delete(OPERATIONS).where(C.id == operation_id, C.state.in_(sorted(TERMINAL)))
            )

    async def _update(self, operation_id: str, **values: Any) -> None:
        async with self._database.transaction() as transaction:
            await transaction.execute(
                sa.update(OPERATIONS)
                .where(C.id == operation_id, C.state.not_in(sorted(TERMINAL)))
                .values(**values, update_us=self._clock.now_us())
            )


def message_of(name: str, data: bytes) -> Message:
    """Parse a message by its full name."""
    descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    return message_factory.GetMessageClass(descriptor).FromString(data)


def _packed(name: str, data: bytes) -> AnyMessage:
    return AnyMessage(type_url=f"type.googleapis.com/{name}", value=data)
