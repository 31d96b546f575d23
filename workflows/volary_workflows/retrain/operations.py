"""Follow a long-running operation of a service to its end, from within an activity."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from volary_kit.errors import Internal, VolaryError
from volary_kit.statuses import error_of
from volary_longrunning import operations_pb2, operations_pb2_grpc

WAIT = Duration(seconds=2)
ResponseT = TypeVar("ResponseT", bound=Message)


async def followed(
    channel: grpc.aio.Channel, operation: operations_pb2.Operation, response: ResponseT
) -> ResponseT:
    """Return the response of an operation once it is done; raise its error.

    When the activity is cancelled the operation is, too.
    """
    stub = operations_pb2_grpc.OperationsStub(channel)
    try:
        while not operation.done:
            operation = await stub.WaitOperation(
                operations_pb2.WaitOperationRequest(name=operation.name, timeout=WAIT)
            )
    except asyncio.CancelledError:
        with suppress(VolaryError):
            await asyncio.shield(
                stub.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
            )
        raise
    if operation.HasField("error"):
        raise error_of(operation.error)
    if not operation.response.Unpack(response):
        raise Internal("RESPONSE_UNEXPECTED", f"{operation.name} answered something else")
    return response
