"""`grpc.health.v1`: liveness apart from readiness.

`liveness` is SERVING as long as the process answers and touches no dependency. The empty
service, `readiness` and the full name of each service follow the readiness checks, which run in
the background: a probe never waits for a database.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from volary_kit.errors import NotFound
from volary_kit.registration import Servicer

SERVICE = "grpc.health.v1.Health"
LIVENESS = "liveness"
READINESS = "readiness"
PERIOD_S = 1.0
STARTING_PERIOD_S = 0.1
TIMEOUT_S = 2.0
POLL_S = 1.0
STATUS = health_pb2.HealthCheckResponse
LIST_REPLY: type[Message] = vars(health_pb2)["HealthListResponse"]  # its stub file lacks it
Check = Callable[[], Awaitable[object]]
log = logging.getLogger(__name__)


class Health:
    """Whether this process takes calls; watched from event loops and from threads."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._names = {"", READINESS, *services}
        self._is_ready = False
        self._is_draining = False
        self._watchers: set[Callable[[], None]] = set()

    @property
    def is_ready(self) -> bool:
        """True when the checks pass and no drain has begun."""
        return self._is_ready and not self._is_draining

    @property
    def is_draining(self) -> bool:
        """True from the moment a drain begins; there is no way back."""
        return self._is_draining

    def add(self, services: Iterable[str]) -> None:
        """Announce the full names of more services."""
        with self._lock:
            self._names.update(services)

    def set_ready(self, is_ready: bool) -> None:  # noqa: FBT001 - a setter of one bool
        """Say what the readiness checks found."""
        changed = self._is_ready != is_ready
        self._is_ready = is_ready
        if changed:
            self._tell()

    def drain(self) -> None:
        """Answer NOT_SERVING from now on."""
        self._is_draining = True
        self._tell()

    def status(self, service: str) -> STATUS.ServingStatus | None:
        """Return the status of one service, None when there is no such service."""
        if service == LIVENESS:
            return STATUS.SERVING
        if service not in self._names:
            return None
        return STATUS.SERVING if self.is_ready else STATUS.NOT_SERVING

    def statuses(self) -> dict[str, STATUS.ServingStatus]:
        """Return the status of every service."""
        now = STATUS.SERVING if self.is_ready else STATUS.NOT_SERVING
        return {LIVENESS: STATUS.SERVING} | dict.fromkeys(sorted(self._names), now)

    @contextmanager
    def watched(self, changed: Callable[[], None]) -> Iterator[None]:
        """Call `changed`, from any thread, whenever a status may have changed."""
        with self._lock:
            self._watchers.add(changed)
        try:
            yield
        finally:
            with self._lock:
                self._watchers.discard(changed)

    def _tell(self) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for changed in watchers:
            changed()


class _HealthAnswers:
    """What the handlers of both servers share."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def checked(self, request: health_pb2.HealthCheckRequest) -> STATUS:
        status = self._health.status(request.service)
        if status is None:
            raise NotFound("SERVICE_UNKNOWN", "no such service here", {"service": request.service})
        return STATUS(status=status)

    def listed(self) -> Message:
        statuses = self._health.statuses()
        return LIST_REPLY(
            statuses={name: STATUS(status=status) for name, status in statuses.items()}
        )

    def watched_status(self, service: str) -> STATUS.ServingStatus:
        status = self._health.status(service)
        return STATUS.SERVICE_UNKNOWN if status is None else status


class AioHealthHandler(_HealthAnswers, health_pb2_grpc.HealthServicer):
    """Health on grpc.aio; a Watch ends after it has told of the drain."""

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> STATUS:  # noqa: ARG002
        return self.checked(request)

    async def List(self, request: Any, context: Any) -> Message:  # noqa: ARG002
        return self.listed()

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[STATUS]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(changed.set)

        with self._health.watched(tell):
            last: STATUS.ServingStatus | None = None
            while True:
                changed.clear()
                # asked before the status: a drain that begins in between is told of first
                is_last = self._health.is_draining
                status = self.watched_status(request.service)
                if status != last:
                    yield STATUS(status=status)
                last = status
                if is_last:
                    return
                await changed.wait()


class SyncHealthHandler(_HealthAnswers, health_pb2_grpc.HealthServicer):
    """Health on a thread-pool server; a Watch ends after it has told of the drain."""

    def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> STATUS:  # noqa: ARG002
        return self.checked(request)

    def List(self, request: Any, context: Any) -> Message:  # noqa: ARG002
        return self.listed()

    def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[STATUS]:
        changed = threading.Event()
        context.add_callback(changed.set)
        with self._health.watched(changed.set):
            last: STATUS.ServingStatus | None = None
            while context.is_active():
                changed.clear()
                # asked before the status: a drain that begins in between is told of first
                is_last = self._health.is_draining
                status = self.watched_status(request.service)
                if status != last:
                    yield STATUS(status=status)
                last = status
                if is_last:
                    return
                changed.wait(POLL_S)


def health_servicer(health: Health, *, is_aio: bool) -> Servicer:
    """Return the health service of one server."""
    handler = AioHealthHandler(health) if is_aio else SyncHealthHandler(health)
    return Servicer(health_pb2_grpc.add_HealthServicer_to_server, handler, SERVICE)


class Readiness:
    """Run the readiness checks in turn, for as long as the process lives.

    A check passes unless it raises or returns False; it has `TIMEOUT_S`.
    """

    def __init__(self, health: Health, checks: Iterable[Check]) -> None:
        self._health = health
        self._checks = tuple(checks)
        self._failing: set[str] = set()

    async def watch(self) -> None:
        """Check without end: every 0.1 s until ready for the first time, then every second."""
        was_ready = False
        while not self._health.is_draining:
            await self.check()
            was_ready = was_ready or self._health.is_ready
            await asyncio.sleep(PERIOD_S if was_ready else STARTING_PERIOD_S)

    async def check(self) -> bool:
        """Run every check once and tell the health service."""
        results = await asyncio.gather(*(self._passes(check) for check in self._checks))
        self._health.set_ready(all(results))
        return all(results)

    async def _passes(self, check: Check) -> bool:
        name = getattr(check, "__qualname__", repr(check))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await check()
            reason = "answered False" if answer is False else ""
        except Exception as error:  # noqa: BLE001 - a worker loop: whatever a check raises, it failed
            reason = f"{type(error).__name__}: {error}"
        self._note(name, reason)
        return not reason

    def _note(self, name: str, reason: str) -> None:
        if reason and name not in self._failing:
            self._failing.add(name)
            log.warning("not ready: %s %s", name, reason)
        elif not reason and name in self._failing:
            self._failing.discard(name)
            log.info("ready again: %s", name)
