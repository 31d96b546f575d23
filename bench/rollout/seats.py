"""Replicas that are processes of their own, each attached to gateway: killed, started, replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from volary.gateway.v1 import replica_service_pb2

from bench.rollout.many import start_replica, until_answers
from tests.unit.gateway.mesh import Mesh, Replica
from tests.unit.gateway.rig import free_port

Words = Sequence[str | Path]  # a command that wants a port, and leaves when its input ends
BACK_S = 90.0
LOOK_S = 0.1
LEAVE_S = 60.0


class Leaving(Replica):
    """A replica that can say that it wants no more calls."""

    is_draining = False

    def _report(self, desired: Any) -> replica_service_pb2.AttachRequest:
        report = super()._report(desired)
        report.draining = self.is_draining
        return report


class Seat:
    """One replica of a model, whichever process it is."""

    def __init__(self, words: Words, running: Mesh, at: int) -> None:
        self._words, self._running, self._at = words, running, at
        self.port = free_port()
        self._process = start_replica(words, self.port)
        self._attached: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Return host:port."""
        return f"127.0.0.1:{self.port}"

    async def join(self) -> None:
        """Attach to gateway once it takes calls."""
        await until_answers(self.address)
        # each process has a name of its own: the one that leaves is attached beside the new one
        backend: Any = self
        self._replica = Leaving(self._running, backend, f"seat-{self._at}-{self.port}")
        self._attached = asyncio.create_task(self._replica.attach())

    async def kill(self) -> None:
        """Kill -9 the process; gateway goes on believing in it."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def restart(self) -> None:
        """Start it again on its port."""
        self._process = start_replica(self._words, self.port)
        await until_answers(self.address)

    async def replaced(self) -> Seat:
        """Return another process that has joined; this one is still there."""
        other = Seat(self._words, self._running, self._at)
        await other.join()
        return other

    def decline(self) -> None:
        """Tell gateway to send no more calls."""
        self._replica.is_draining = True

    async def leave(self) -> None:
        """Answer what is on its way, then end the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(LEAVE_S):
            await asyncio.to_thread(self._process.wait, LEAVE_S)
        await self._detach()

    async def _detach(self) -> None:
        if self._attached is None:
            return
        self._attached.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await self._attached

    async def close(self) -> None:
        """End it at once."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        await self._detach()


class Seats:
    """The replicas of one model, and what Envoy thinks of them."""

    def __init__(self, words: Words, running: Mesh, number: int) -> None:
        self._running = running
        self._seats = [Seat(words, running, at) for at in range(number)]

    @property
    def addresses(self) -> list[str]:
        """Return where they listen."""
        return [seat.address for seat in self._seats]

    async def join(self) -> None:
        """Attach every process."""
        for seat in self._seats:
            await seat.join()

    async def settled(self, *, number: int | None = None) -> None:
        """Wait until Envoy has so many replicas of both versions, all of them healthy."""
        wanted = len(self._seats) if number is None else number
        await self._until(lambda found: {*found.values()} == {wanted})

    async def _until(self, is_so: Callable[[dict[str, int]], bool]) -> None:
        end = time.monotonic() + BACK_S
        while not is_so(found := await asyncio.to_thread(self._found)):
            if time.monotonic() > end:
                raise AssertionError(f"never within {BACK_S} s; healthy replicas: {found}")
            await asyncio.sleep(LOOK_S)

    def _found(self) -> dict[str, int]:
        stats = self._running.envoy.stats("membership_healthy")
        name = f"cluster.version/default/{self._running.model}"
        names = [f"{name}/{version}.membership_healthy" for version in (1, 2)]
        return {name: stats.get(name, 0) for name in names}

    async def kill_and_restart(self, at: int) -> None:
        """Lose one with signal 9 until Envoy calls it no more; wait until Envoy has it back."""
        seat = self._seats[at % len(self._seats)]
        await seat.kill()
        # a version without traffic is looked at every 30 s only: the other one tells
        await self._until(lambda found: min(found.values()) < len(self._seats))
        await seat.restart()
        await self.settled()

    async def replace_all(self) -> None:
        """Put another process into each place, one after another."""
        for at, seat in enumerate(self._seats):
            other = await seat.replaced()
            self._seats[at] = other
            await self.settled(number=len(self._seats) + 1)
            seat.decline()
            await self.settled()
            await seat.leave()

    async def close(self) -> None:
        """End every process."""
        for seat in self._seats:
            await seat.close()
