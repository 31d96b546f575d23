"""Wait for long work, and say how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from volary_kit.errors import DeadlineExceeded
from volary_kit.statuses import error_of
from volary_longrunning.operations_pb2 import Operation, WaitOperationRequest
from volary_longrunning.operations_pb2_grpc import OperationsStub

M = TypeVar("M", bound=Message)
Progress = Callable[[Operation], None]
ROUND_S = 10  # one WaitOperation call; the server answers earlier when the operation ends


async def wait(
    stub: OperationsStub,
    operation: Operation,
    response: type[M],
    *,
    rounds: int = 360,
    on_progress: Progress | None = None,
) -> M:
    """Return the operation's response; raise its error, or DeadlineExceeded after `rounds`."""
    for _ in range(rounds):
        if operation.done:
            return result_of(operation, response)
        if on_progress is not None:
            on_progress(operation)
        request = WaitOperationRequest(name=operation.name, timeout=Duration(seconds=ROUND_S))
        operation = await stub.WaitOperation(request, timeout=ROUND_S + 5)
    raise DeadlineExceeded("OPERATION_RUNNING", f"{operation.name} is still running")


def result_of(operation: Operation, response: type[M]) -> M:
    """Return what a finished operation answered; raise what it failed with."""
    if operation.HasField("error"):
        raise error_of(operation.error)
    message = response()
    if not operation.response.Unpack(message):
        raise TypeError(f"{operation.name} answered {operation.response.type_url}")
    return message
