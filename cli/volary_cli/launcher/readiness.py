"""Questions that only a component which does its work can answer."""

from __future__ import annotations

import asyncio

import grpc
import psutil
from grpc_health.v1 import health_pb2

from volary_cli.launcher.engines.temporal import NAMESPACE

PROBE_S = 2.0
OPTIONS = [
    ("grpc.max_reconnect_backoff_ms", 500),  # a restarted service is seen at once
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
]
# a probe a second is no trace that anybody wants to read: W3C trace flags say "not sampled"
UNSAMPLED = (("traceparent", f"00-{1:032x}-{1:016x}-00"),)
CHECK = "/grpc.health.v1.Health/Check"
DESCRIBE = "/temporal.api.workflowservice.v1.WorkflowService/DescribeTaskQueue"


class HealthProbe:
    """Ask `grpc.health.v1` of one or more listeners; ready means that every one serves."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self._channels: list[grpc.aio.Channel] = []

    async def __call__(self) -> bool:
        """Return whether all of them serve."""
        if not self._channels:
            self._channels = [
                grpc.aio.insecure_channel(at, options=OPTIONS) for at in self._addresses
            ]
        return all(await asyncio.gather(*(_serves(channel) for channel in self._channels)))


async def _serves(channel: grpc.aio.Channel) -> bool:
    try:
        check = channel.unary_unary(
            CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        reply = await check(health_pb2.HealthCheckRequest(), timeout=PROBE_S, metadata=UNSAMPLED)
    except grpc.aio.AioRpcError:
        return False
    return reply.status == health_pb2.HealthCheckResponse.SERVING


class WorkerProbe:
    """Ask Temporal whether a worker polls a task queue."""

    def __init__(self, temporal: str, task_queue: str) -> None:
        self._temporal = temporal
        self._task_queue = task_queue
        self._channel: grpc.aio.Channel | None = None

    async def __call__(self) -> bool:
        """Return whether Temporal has heard of a worker within the last minutes."""
        from temporalio.api.enums.v1 import TaskQueueType
        from temporalio.api.taskqueue.v1 import TaskQueue
        from temporalio.api.workflowservice.v1 import (
            DescribeTaskQueueRequest,
            DescribeTaskQueueResponse,
        )

        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._temporal, options=OPTIONS)
        describe = self._channel.unary_unary(
            DESCRIBE,
            request_serializer=DescribeTaskQueueRequest.SerializeToString,
            response_deserializer=DescribeTaskQueueResponse.FromString,
        )
        request = DescribeTaskQueueRequest(
            namespace=NAMESPACE,
            task_queue=TaskQueue(name=self._task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        try:
            reply = await describe(request, timeout=PROBE_S)
        except grpc.aio.AioRpcError:
            return False
        return any(_is_alive(poller.identity) for poller in reply.pollers)


def _is_alive(identity: str) -> bool:
    """Say whether a poller's process lives; Temporal remembers those that died for minutes.

    The SDK's identity is pid@host.
    """
    pid = identity.partition("@")[0]
    return pid.isdigit() and psutil.pid_exists(int(pid))
