"""`google.longrunning.Operations` of one service."""

from __future__ import annotations

import math
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from volary_longrunning import operations_pb2, operations_pb2_grpc

from volary_kit import names
from volary_kit.calls import current_call
from volary_kit.errors import FailedPrecondition, InvalidArgument, NotFound
from volary_kit.operations import Operations
from volary_kit.operations.rows import OperationRow
from volary_kit.timestamps import MICROS, duration_us

Context = grpc.aio.ServicerContext[Any, Any]
NAME = "projects/{project}/operations/{operation}"
PARENT = "projects/{project}"
SERVICE = "google.longrunning.Operations"
PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
LOOK_EVERY_S = 0.5  # at what another replica has ended
MAX_US = (1 << 63) - 1  # what a bigint column holds
MARGIN_S = 0.2  # so that the answer leaves before the caller's deadline
FILTERS: dict[str, bool | None] = {"": None, "done=true": True, "done=false": False}


class OperationsHandler(operations_pb2_grpc.OperationsServicer):
    """Answers for the operations that this service owns."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        return self._reply(await self._row(request.name))

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Return the operation when it is done, or as it is when the time is up."""
        asked_s = math.inf
        if request.HasField("timeout"):
            asked_s = duration_us(request.timeout, "timeout") / MICROS
        call = current_call()
        clock = call.clock
        until_s = clock.monotonic_s() + min(asked_s, call.remaining_s() - MARGIN_S)
        while True:
            row = await self._row(request.name)
            left_s = until_s - clock.monotonic_s()
            if row.is_done or left_s <= 0:
                return self._reply(row)
            await self._operations.ended(min(LOOK_EVERY_S, left_s))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """List the operations of a project, newest first; filter `done=true` or `done=false`.

        The name is `projects/{project}/operations`, with `/{service}` behind it at the edge,
        where it says whose operations are meant.
        """
        parent = request.name.removesuffix(f"/{self._operations.service}")
        project = names.parse(PARENT, parent.removesuffix("/operations"), field="name")
        key = request.filter.replace(" ", "")
        if key not in FILTERS:
            raise InvalidArgument(
                "FILTER_UNKNOWN", "filter is empty, done=true or done=false", field="filter"
            )
        size = min(request.page_size or PAGE_SIZE, MAX_PAGE_SIZE)
        if size < 0:
            raise InvalidArgument(
                "PAGE_SIZE_NEGATIVE", "page_size must not be negative", field="page_size"
            )
        rows = await self._operations.rows.page(
            project["project"], _position(request.page_token), size + 1, done=FILTERS[key]
        )
        more = len(rows) > size
        return operations_pb2.ListOperationsResponse(
            operations=[self._reply(row) for row in rows[:size]],
            next_page_token=f"{rows[size - 1].create_us}.{rows[size - 1].id}" if more else "",
        )

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> Empty:
        """Ask an operation to end; one that has ended stays as it is."""
        row = await self._row(request.name)
        if not row.is_done:
            await self._operations.cancel(row.id)
        return Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> Empty:
        """Forget an operation that has ended."""
        row = await self._row(request.name)
        if not row.is_done:
            raise FailedPrecondition("OPERATION_RUNNING", "cancel the operation first")
        await self._operations.rows.delete(row.id)
        return Empty()

    def _reply(self, row: OperationRow) -> operations_pb2.Operation:
        return row.operation(self._operations.service)

    async def _row(self, name: str) -> OperationRow:
        ids = names.parse(NAME, name, field="name")
        service, _, operation_id = ids["operation"].partition(".")
        row = None
        if service == self._operations.service:
            row = await self._operations.rows.find(operation_id, ids["project"])
        if row is None:
            raise NotFound(
                "OPERATION_NOT_FOUND", f"operation {name} does not exist", {"operation": name}
            )
        return row


def _position(token: str) -> tuple[int, str] | None:
    if not token:
        return None
    time, _, operation_id = token.partition(".")
    if not time.isdecimal() or int(time) > MAX_US or not operation_id:
        raise InvalidArgument("PAGE_TOKEN_MALFORMED", "page_token is not ours", field="page_token")
    return int(time), operation_id
