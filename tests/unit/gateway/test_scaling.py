"""Twice the load brings a replica, half of it sends it away, and no call fails meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volary.gateway.v1 import replica_service_pb2
from volary_cli.launcher.scaling import Autoscaler, Replicas, ScalingPolicy
from volary_kit.clock import SystemClock

from tests.unit.gateway.mesh import Mesh, Replica, mesh
from tests.unit.gateway.rig import Backend, Load, until
from tests.unit.gateway.test_service import Client, healthy

SERVICE_S = 0.01
# one caller at a time waits for nobody; of four each waits for about three
POLICY = ScalingPolicy(1, 2, high_us=15_000, low_us=6_000, rise_s=0.5, fall_s=1.0)
MEMORY = 0.2


class SerialBackend(Backend):
    """A backend that works on one call at a time and knows how long calls wait for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._turn = asyncio.Lock()
        self.queue_us = 0.0

    async def ModelInfer(self, request, context):
        began = time.perf_counter()
        async with self._turn:
            waited_us = (time.perf_counter() - began) * 1e6
            self.queue_us += MEMORY * (waited_us - self.queue_us)
            await asyncio.sleep(SERVICE_S)  # the work itself
            return await super().ModelInfer(request, context)


class SerialReplica(Replica):
    """A replica that reports the wait of its backend, and that it drains."""

    is_draining = False

    def _report(self, desired):
        report = super()._report(desired)
        report.queue_time.FromMicroseconds(int(self.backend.queue_us))
        report.draining = self.is_draining
        return report


@dataclass
class Machine:
    """Starts and stops replicas as the launcher does: SIGTERM is drain, then end."""

    running: Mesh
    replicas: list[tuple[SerialReplica, asyncio.Task]] = field(default_factory=list)
    joined: int = 0
    left: int = 0

    async def add(self, index: int) -> None:
        backend = SerialBackend(f"replica-{index}").start()
        await backend.server.start()
        replica = SerialReplica(self.running, backend, f"replica-{index}")
        self.replicas.append((replica, asyncio.create_task(replica.attach())))
        self.joined += 1

    async def remove(self, index: int) -> None:
        replica, task = self.replicas.pop(index)
        replica.is_draining = True
        await until(lambda: healthy(self.running, 1) == index, 20)  # Envoy has let it go
        await replica.backend.server.stop(5)
        task.cancel()
        self.left += 1

    async def queue_us(self) -> Sequence[int]:
        request = replica_service_pb2.ListReplicasRequest(parent="projects/default")
        stub = self.running.replicas
        reply = await stub.ListReplicas(request, metadata=self.running.as_service(), timeout=5)
        return [
            each.queue_time.ToMicroseconds()
            for each in reply.replicas
            if not each.draining and each.versions
        ]

    async def close(self) -> None:
        for replica, task in self.replicas:
            task.cancel()
            await replica.backend.server.stop(None)


async def test_replica_joins_under_load_and_leaves_after_it(tmp_path: Path, databases):
    url = await databases.fresh("gateway")
    async with mesh(tmp_path, url, []) as running:
        await asyncio.wait_for(running.direct("test").channel_ready(), 60)
        machine = Machine(running)
        await machine.add(0)
        await running.load(1)
        assert (await running.set(0, (1, 10_000))).in_effect
        scaler = Autoscaler(
            POLICY, Replicas(machine.queue_us, machine.add, machine.remove), 1, SystemClock()
        )
        scaling = asyncio.create_task(scaler.run_always(0.1))
        client = Client(running)
        try:
            async with Load(client.infer, callers=1) as load:  # a failed call fails the block
                await load.more(50)
                assert machine.joined == 1
                async with Load(client.infer, callers=3):
                    await until(lambda: machine.joined == 2, 30)
                    newcomer = machine.replicas[1][0].backend
                    await until(lambda: len(newcomer.calls()) > 20, 30)
                await until(lambda: machine.left == 1, 30)
                await load.more(50)
            assert scaler.running == 1
        finally:
            scaling.cancel()
            await machine.close()
    await databases.drop(url)
