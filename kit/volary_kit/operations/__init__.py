"""Long-running operations: a row in the owner's Postgres is the truth, Temporal runs the work.

    operations.register("BuildTrainingSet", build)          # async (OperationContext, request)
    async with database.transaction() as transaction:
        return await operations.start(
            transaction, method="BuildTrainingSet", request=request, metadata=BuildMetadata()
        )

The row is written in the transaction that starts the operation; its workflow is started once
that is committed, and again after a crash until it is there. A handler may run more than once
(a killed worker, a transient error), so it uses `context.request_id(step)` for calls it makes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from importlib import metadata as distributions

from google.protobuf.message import Message
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from volary_longrunning import operations_pb2

from volary_kit import telemetry
from volary_kit.calls import current_call
from volary_kit.clock import Clock
from volary_kit.database import Database, Transaction, on_commit
from volary_kit.errors import Unavailable, VolaryError
from volary_kit.operations.rows import CANCELLED, PENDING, OperationRow, OperationRows
from volary_kit.operations.running import Handler, OperationContext, Running, cancelled
from volary_kit.operations.workflow import OperationOrder, OperationWorkflow
from volary_kit.statuses import status_of
from volary_kit.telemetry import names

__all__ = ["Handler", "OperationContext", "Operations"]
log = logging.getLogger(__name__)

TIMEOUT_S = 6 * 3_600.0
ATTEMPTS = 20  # 1 s doubling to 30 s: about nine minutes of a dependency being away
MAX_RUNNING = 4  # operations of one process at a time; the rest waits in Temporal
HEALTH_S = 2.0
LOOK_AFTER_S = 1.0
RETRY_S = 0.5
BATCH = 32
QUIET_S = 60.0
MICROS = 1_000_000
GRACE_S = 2.0
THROTTLE_S = 0.5


class Operations:
    """The operations of one service."""

    def __init__(
        self,
        service: str,
        database: Database,
        temporal: Callable[[], Awaitable[Client]],
        clock: Clock,
    ) -> None:
        self.service = service
        self.rows = OperationRows(database, clock)
        self._temporal = temporal
        self._clock = clock
        self._handlers: dict[str, Handler] = {}
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._look_for_lost_s = 0.0

    @property
    def task_queue(self) -> str:
        """The Temporal task queue that this service works on."""
        return f"volary-{self.service}"

    @property
    def has_handlers(self) -> bool:
        """True when this process runs the operations of at least one method."""
        return bool(self._handlers)

    def register(self, method: str, handler: Handler) -> None:
        """Say what runs the operations of a method."""
        self._handlers[method] = handler

    async def start(
        self,
        transaction: Transaction,
        *,
        method: str,
        request: Message,
        metadata: Message | None = None,
    ) -> operations_pb2.Operation:
        """Write the operation in `transaction`; its work begins once that commits.

        The same request id returns the same operation. Raises Unavailable when Temporal
        cannot be reached.
        """
        await self._require_temporal()
        row = self._new_row(method, request, metadata)
        row = await self.rows.insert(transaction, row)
        on_commit(transaction, self._wake.set)
        return row.operation(self.service)

    async def run(self) -> None:
        """Work on operations for ever; Temporal or Postgres away is waited out."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work())
            tasks.create_task(self._start_pending())

    async def ended(self, within_s: float) -> None:
        """Return when an operation of this process ends, at the latest after `within_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._ended.wait()

    async def cancel(self, operation_id: str) -> None:
        """Note that an operation should end, and tell its workflow soon."""
        await self.rows.request_cancel(operation_id)
        self._wake.set()

    def _new_row(self, method: str, request: Message, metadata: Message | None) -> OperationRow:
        call = current_call()
        request_id = getattr(request, "request_id", "") or call.request_key
        now_us = self._clock.now_us()
        principal = call.principal.on_behalf_of or call.principal.subject
        return OperationRow(
            id=operation_id(self.service, method, call.project, request_id),
            project=call.project,
            method=method,
            principal=principal,
            traceparent=telemetry.traceparent(),
            request_type=request.DESCRIPTOR.full_name,
            request=request.SerializeToString(),
            state=PENDING,
            metadata_type="" if metadata is None else metadata.DESCRIPTOR.full_name,
            metadata=b"" if metadata is None else metadata.SerializeToString(),
            response_type=None,
            response=None,
            error=None,
            cancel_requested=False,
            started=False,
            create_us=now_us,
            update_us=now_us,
        )

    async def _require_temporal(self) -> None:
        try:
            async with asyncio.timeout(HEALTH_S):
                client = await self._temporal()
                await client.service_client.check_health(timeout=timedelta(seconds=HEALTH_S))
        except (RPCError, RuntimeError, TimeoutError) as error:
            raise Unavailable(
                "TEMPORAL_UNAVAILABLE", "long-running work cannot be started", retry_after_s=1.0
            ) from error

    async def _work(self) -> None:
        client = await self._connected()
        running = Running(self.rows, self._handlers, self._announce_end)
        worker = Worker(
            client,
            task_queue=self.task_queue,
            workflows=[OperationWorkflow],
            activities=[running.run_operation, running.close_operation],
            # one activity and nothing else: a sandbox would import it anew for every operation
            workflow_runner=UnsandboxedWorkflowRunner(),
            # without one the SDK hashes every loaded module, for seconds, on the event loop
            build_id=f"volary-kit-{distributions.version('volary-kit')}",
            max_concurrent_activities=MAX_RUNNING,
            # a cancellation arrives with a heartbeat, and these are held back by this long
            max_heartbeat_throttle_interval=timedelta(seconds=THROTTLE_S),
            graceful_shutdown_timeout=timedelta(seconds=GRACE_S),
        )
        async with worker:
            await asyncio.Event().wait()

    async def _connected(self) -> Client:
        while True:
            try:
                return await self._temporal()
            except Unavailable as error:
                log.warning("operations wait: %s", error.reason)
                await asyncio.sleep(RETRY_S)

    def _announce_end(self) -> None:
        self._ended.set()
        self._ended = asyncio.Event()

    async def _start_pending(self) -> None:
        client = await self._connected()
        self._look_for_lost_s = 0.0
        while True:
            self._wake.clear()
            try:
                for row in await self.rows.unstarted(BATCH):
                    await self._start_workflow(client, row)
                for row in await self.rows.cancelling(BATCH):
                    await self._cancel_workflow(client, row)
                await self._close_lost(client)
            except (VolaryError, RPCError) as error:
                log.warning("operations wait: %s", telemetry.error_type(error))
                await asyncio.sleep(RETRY_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AFTER_S):
                    await self._wake.wait()

    async def _cancel_workflow(self, client: Client, row: OperationRow) -> None:
        try:
            await client.get_workflow_handle(row.id).cancel()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            await self.rows.fail(row.id, cancelled(), CANCELLED)  # Temporal has forgotten it
            self._announce_end()

    async def _close_lost(self, client: Client) -> None:
        """End operations whose workflow has ended or is gone: somebody terminated it, say."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._look_for_lost_s:
            return
        self._look_for_lost_s = now_s + QUIET_S / 2
        for row in await self.rows.quiet(self._clock.now_us() - int(QUIET_S * MICROS), BATCH):
            if not await _is_running(client, row.id):
                lost = Unavailable("OPERATION_LOST", "its workflow ended without a result")
                await self.rows.fail(row.id, status_of(lost))
                self._announce_end()

    async def _start_workflow(self, client: Client, row: OperationRow) -> None:
        parent = {telemetry.TRACEPARENT: row.traceparent} if row.traceparent else None
        with telemetry.span(
            f"start {row.method}", {names.OPERATION: row.id}, kind="producer", parent=parent
        ):
            with suppress(WorkflowAlreadyStartedError):
                await client.start_workflow(
                    OperationWorkflow.run,
                    OperationOrder(row.id, TIMEOUT_S, ATTEMPTS),
                    id=row.id,
                    task_queue=self.task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                )
            await self.rows.mark_started(row.id)


async def _is_running(client: Client, workflow_id: str) -> bool:
    try:
        found = await client.get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return found.status is WorkflowExecutionStatus.RUNNING


def operation_id(service: str, method: str, project: str, request_id: str) -> str:
    """Return the id of an operation, which is also its workflow's: 32 hex digits."""
    key = f"{service}\0{method}\0{project}\0{request_id}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]
