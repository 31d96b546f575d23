"""The activities of an operation: call its handler, keep its row."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from temporalio import activity
from temporalio.exceptions import ApplicationError

from volary_kit import errors, telemetry
from volary_kit.calls import act_for
from volary_kit.errors import Cancelled, Internal, Unavailable, VolaryError
from volary_kit.operations.rows import CANCELLED, FAILED, OperationRow, OperationRows
from volary_kit.operations.workflow import (
    CLOSE,
    RUN,
    OperationEnd,
    OperationOrder,
)
from volary_kit.statuses import new_error_id, status_of
from volary_kit.telemetry import names

log = logging.getLogger(__name__)

STEPS = uuid.UUID("5f6d8a51-30e7-4c1e-9a52-0b0f6f0a7c11")
SAVE_AGAIN_S = 0.5
BEAT_S = 0.5  # a cancellation comes as the answer to a heartbeat
TRANSIENT = (
    errors.Unavailable,
    errors.Aborted,
    errors.ResourceExhausted,
    errors.DeadlineExceeded,
)


@dataclass(frozen=True)
class OperationContext:
    """What a handler knows of the operation that it runs."""

    id: str
    project: str
    principal: str
    attempt: int
    rows: OperationRows

    async def progress(self, metadata: Message) -> None:
        """Show progress to whoever looks at the operation."""
        await self.rows.progress(self.id, metadata)

    def request_id(self, step: str) -> str:
        """Return the request id of a call that this operation makes; the same on every attempt."""
        return str(uuid.uuid5(STEPS, f"{self.id}/{step}"))


Handler = Callable[[OperationContext, Any], Awaitable[Message]]


class Running:
    """Runs the handlers of a service as Temporal activities."""

    def __init__(
        self,
        rows: OperationRows,
        handlers: Mapping[str, Handler],
        on_end: Callable[[], None],
    ) -> None:
        self._rows = rows
        self._handlers = handlers
        self._on_end = on_end

    @activity.defn(name=RUN)
    async def run_operation(self, order: OperationOrder) -> str:
        """Call the handler, store its result; return the final state."""
        row = await self._rows.begin(order.id)
        if row is None:
            raise ApplicationError("there is no such operation", non_retryable=True)
        if row.is_done:
            return row.state
        if row.cancel_requested:
            return await self._end(row, None, Cancelled("CANCELLED", "the operation was cancelled"))
        response, failure = await self._outcome(row, order)
        return await self._end(row, response, failure)

    @activity.defn(name=CLOSE)
    async def close_operation(self, end: OperationEnd) -> str:
        """Store that the run left no result; return the final state."""
        row = await self._rows.find(end.id)
        if row is None or row.is_done:
            return FAILED if row is None else row.state
        if end.was_cancelled:
            return await self._end(row, None, Cancelled("CANCELLED", "the operation was cancelled"))
        failure = Unavailable("OPERATION_LOST", "no worker finished the operation in time")
        return await self._end(row, None, failure)

    async def _outcome(
        self, row: OperationRow, order: OperationOrder
    ) -> tuple[Message | None, VolaryError | None]:
        """Call the handler; raise what Temporal should try again, return anything else."""
        try:
            async with _heartbeats():
                return await self._call(row), None
        except asyncio.CancelledError:
            if not _is_cancel_requested():
                raise ApplicationError("the worker goes away", type="WORKER_LEAVES") from None
            return None, Cancelled("CANCELLED", "the operation was cancelled")
        except TRANSIENT as error:
            if activity.info().attempt < order.attempts:
                raise _again(error) from error
            return None, error
        except VolaryError as error:
            return None, error
        except Exception:  # a worker loop: a defect of a handler ends its operation alone
            error_id = new_error_id()
            log.exception("operation %s failed, error id %s", row.id, error_id)
            return None, Internal("INTERNAL", "a defect", {"error_id": error_id})

    async def _call(self, row: OperationRow) -> Message:
        handler = self._handlers.get(row.method)
        if handler is None:
            raise errors.Unimplemented("OPERATION_UNKNOWN", f"nothing here runs {row.method}")
        context = OperationContext(
            row.id, row.project, row.principal, activity.info().attempt, self._rows
        )
        attributes: telemetry.Attributes = {
            names.OPERATION: row.id,
            names.PROJECT: row.project,
            names.ATTEMPT: context.attempt,
        }
        with (
            act_for(row.project, row.principal, row.id),
            telemetry.span(f"operation {row.method}", attributes),
        ):
            return await handler(context, row.parsed_request())

    async def _end(
        self, row: OperationRow, response: Message | None, failure: VolaryError | None
    ) -> str:
        """Store how it ended; the work is done, so the database is waited for."""
        while True:
            try:
                await self._store(row, response, failure)
            except Unavailable as error:
                log.warning("operation %s cannot be stored yet: %s", row.id, error.reason)
                activity.heartbeat()
                await asyncio.sleep(SAVE_AGAIN_S)
            else:
                break
        self._on_end()
        found = await self._rows.find(row.id)
        return FAILED if found is None else found.state

    async def _store(
        self, row: OperationRow, response: Message | None, failure: VolaryError | None
    ) -> None:
        if response is not None:
            await self._rows.succeed(row.id, response)
        elif failure is not None:
            state = CANCELLED if isinstance(failure, Cancelled) else FAILED
            await self._rows.fail(row.id, _status(failure), state)


def _status(failure: VolaryError) -> Status:
    if isinstance(failure, Cancelled):
        return cancelled()
    return status_of(failure)


def cancelled() -> Status:
    """Return the result of an operation that was cancelled."""
    return Status(code=code_pb2.CANCELLED, message="the operation was cancelled")


def _again(error: VolaryError) -> ApplicationError:
    delay = None if error.retry_after_s is None else timedelta(seconds=error.retry_after_s)
    return ApplicationError(error.message, type=error.reason, next_retry_delay=delay)


def _is_cancel_requested() -> bool:
    details = activity.cancellation_details()
    return details is not None and details.cancel_requested


@asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """Tell Temporal that the handler lives, far more often than it asks for."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(BEAT_S)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
