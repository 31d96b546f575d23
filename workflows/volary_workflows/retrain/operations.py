"""Follow a long-running operation of a service to its end, from within an activity."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from temporalio import activity
from volary_kit.errors import Internal, VolaryError
from volary_kit.statuses import error_of
from volary_longrunning import operations_pb2, operations_pb2_grpc

POLL_S = 0.2
ResponseT = TypeVar("ResponseT", bound=Message)


async def followed(
    channel: grpc.aio.Channel, operation: operations_pb2.Operation, response: ResponseT
) -> ResponseT:
    """Return the response of an operation once it is done; raise its error.

    Heartbeats while it waits, so a killed worker is noticed. When the activity is cancelled the
    operation is, too.
    """
    stub = operations_pb2_grpc.OperationsStub(channel)
    try:
        while not operation.done:
            activity.heartbeat(operation.name)
            await asyncio.sleep(POLL_S)
            operation = await stub.GetOperation(
                operations_pb2.GetOperationRequest(name=operation.name)
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
