"""Real questions: health by RPC, pollers by Temporal."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from temporalio import workflow
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from volary_cli.launcher.loopback import free_port
from volary_cli.launcher.readiness import HealthProbe, WorkerProbe

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(health_pb2_grpc.HealthServicer):
    """Says what it was told, and remembers the metadata that came."""

    def __init__(self) -> None:
        self.status = NOT_SERVING
        self.metadata: dict[str, str | bytes] = {}

    async def Check(self, request, context):
        self.metadata = dict(context.invocation_metadata())
        return health_pb2.HealthCheckResponse(status=self.status)


async def test_ready_means_that_every_listener_serves() -> None:
    server, health = grpc.aio.server(), Health()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        one, both = HealthProbe(address), HealthProbe(address, f"127.0.0.1:{free_port()}")
        assert not await one()
        health.status = SERVING
        assert await one()
        assert str(health.metadata["traceparent"]).endswith("-00")  # not to be traced
        assert not await both()
    finally:
        await server.stop(0)


@workflow.defn(sandboxed=False)
class Idle:
    @workflow.run
    async def run(self) -> None: ...


async def heard_of(client: Client, queue: str) -> None:
    """Wait until Temporal knows a poller of a queue."""
    request = DescribeTaskQueueRequest(
        namespace="default",
        task_queue=TaskQueue(name=queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    async with asyncio.timeout(20):
        while not (await client.workflow_service.describe_task_queue(request)).pollers:
            await asyncio.sleep(0.05)


def gone_pid() -> int:
    with subprocess.Popen(["/bin/true"]) as process:
        return process.pid


async def test_a_worker_is_ready_when_temporal_has_heard_of_a_process_that_lives(
    temporal_address: str,
) -> None:
    for pid, is_ready in ((os.getpid(), True), (gone_pid(), False)):
        queue = f"queue-{uuid.uuid4()}"
        probe = WorkerProbe(temporal_address, queue)
        assert not await probe()
        client = await Client.connect(temporal_address, identity=f"{pid}@here")
        runner = UnsandboxedWorkflowRunner()
        async with Worker(client, task_queue=queue, workflows=[Idle], workflow_runner=runner):
            await heard_of(client, queue)
            assert await probe() is is_ready
