"""The stream to gateway: this replica reports, gateway says what it shall hold."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from operator import is_

import grpc
from volary.gateway.v1 import replica_pb2, replica_service_pb2, replica_service_pb2_grpc
from volary_kit.clock import Clock
from volary_kit.errors import VolaryError
from volary_kit.health import Health
from volary_kit.timestamps import MICROS, duration_from_us, duration_us, from_us

from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.versions import State, Version, Versions
from volary_inference.lifecycle.desired import Desired, DesiredFile, DesiredVersion
from volary_inference.lifecycle.keeper import Keeper

log = logging.getLogger(__name__)
DEFAULT_LEASE_S = 5.0
# thousands of versions that come one after another shall not have a report each of thousands
WRITING_SHARE = 10  # a tenth of the time at most goes into reports
QUIET_US = 2_000_000  # a version that nobody asked for so long has nobody waiting
REPORTS_A_LEASE = 3  # two may be lost before the lease ends
RECONNECT_S = (0.1, 2.0)
HEARD_S = 1.0  # for gateway's word on a drain; one that is older than this word says none
IDLE_US = 1_000_000  # who was not called for so long is not called at all
LOOK_S = 0.1
STATES = {
    State.LOADING: replica_pb2.VERSION_STATE_LOADING,
    State.WARMING: replica_pb2.VERSION_STATE_WARMING,
    State.READY: replica_pb2.VERSION_STATE_READY,
    State.DRAINING: replica_pb2.VERSION_STATE_DRAINING,
    State.FAILED: replica_pb2.VERSION_STATE_FAILED,
}


class Reporter:
    """Writes the replica's whole state into a report."""

    def __init__(
        self,
        replica_id: str,
        address: Callable[[], str],
        versions: Versions,
        keeper: Keeper,
        health: Health,
        engine: str,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._replica_id = replica_id
        self._incarnation = uuid.uuid4().hex
        self._address = address
        self._versions = versions
        self._keeper = keeper
        self._health = health
        self._engine = engine
        self.is_leaving = False

    @property
    def is_idle(self) -> bool:
        """True when no version was called for a while."""
        serving = [version.serving for version in self._versions.all()]
        last_us = max((each.snapshot().last_us for each in serving if each is not None), default=0)
        return self._clock.now_us() - last_us > IDLE_US

    def versions(self) -> list[Version]:
        """Return the versions as they are now; each change of one is another object."""
        return self._versions.all()

    def report(
        self, versions: Sequence[Version], *, is_unchanged: bool = False
    ) -> replica_service_pb2.AttachRequest:
        """Return the state as it is now; `is_unchanged`: gateway knows the versions."""
        return replica_service_pb2.AttachRequest(
            replica_id=self._replica_id,
            address=self._address(),
            incarnation=self._incarnation,
            revision=self._keeper.revision,
            versions=[] if is_unchanged else [loaded_version(version) for version in versions],
            versions_unchanged=is_unchanged,
            draining=self.is_leaving or self._health.is_draining,
            engine=self._engine,
            queue_time=duration_from_us(int(queue_s(versions, self._clock.now_us()) * MICROS)),
        )


class Attachment:
    """Keeps the stream open; while gateway is away the last desired set goes on serving."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        reporter: Reporter,
        keeper: Keeper,
        file: DesiredFile,
        health: Health,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._stub = replica_service_pb2_grpc.ReplicaServiceStub(channel)
        self._reporter = reporter
        self._keeper = keeper
        self._file = file
        self._health = health
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._lease_s = DEFAULT_LEASE_S
        self._is_attached = False
        self._farewell = replica_pb2.FAREWELL_UNSPECIFIED
        self._takes_unchanged = False  # the gateway of this stream

    async def leave(self, patience_s: float) -> None:
        """Say that this replica drains; return when it may go.

        While it is the last one that has a version with traffic Envoy goes on sending it calls: it
        goes when another one is there, when nobody calls any more, or at the end of its patience.
        """
        if not patience_s or not self._is_attached:
            return
        self._reporter.is_leaving = True
        self.wake()
        began_s = self._clock.monotonic_s()
        while self._is_attached and self._farewell != replica_pb2.FAREWELL_GO:
            is_heard = self._farewell == replica_pb2.FAREWELL_STAY
            limit_s = patience_s if is_heard else min(HEARD_S, patience_s)
            waited_s = self._clock.monotonic_s() - began_s
            if waited_s > limit_s or (is_heard and self._reporter.is_idle):
                break
            await asyncio.sleep(LOOK_S)

    def wake(self) -> None:
        """Report soon; callable from the event loop's thread and from others."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def run(self) -> None:
        """Attach for ever, with a growing wait between failures."""
        self._loop = asyncio.get_running_loop()
        wait_s = RECONNECT_S[0]
        with self._health.watched(self.wake):
            while True:
                self._takes_unchanged = False
                try:
                    async for state in self._stub.Attach(self._reports()):
                        await self._follow(state)
                        wait_s = RECONNECT_S[0]
                except VolaryError as error:
                    log.warning("gateway is away: %s", error)
                self._is_attached = False
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads replicas
                wait_s = min(RECONNECT_S[1], wait_s * 2)

    async def _reports(self) -> AsyncIterator[replica_service_pb2.AttachRequest]:
        told: list[Version] | None = None
        while True:
            self._changed.clear()
            began_s = self._clock.monotonic_s()
            versions = self._reporter.versions()
            is_unchanged = self._takes_unchanged and _is_same(versions, told)
            report = self._reporter.report(versions, is_unchanged=is_unchanged)
            told = versions
            took_s = self._clock.monotonic_s() - began_s
            yield report
            await asyncio.sleep(took_s * WRITING_SHARE)
            try:
                async with asyncio.timeout(self._lease_s / REPORTS_A_LEASE):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _follow(self, state: replica_pb2.DesiredState) -> None:
        self._is_attached, self._farewell = True, state.farewell
        if state.HasField("lease"):
            lease_s = duration_us(state.lease) / MICROS
            self._lease_s = lease_s or DEFAULT_LEASE_S
        self._takes_unchanged = state.takes_unchanged
        desired = desired_of(state)
        self._keeper.want(desired)
        await asyncio.to_thread(self._file.write, desired)


def _is_same(versions: Sequence[Version], told: Sequence[Version] | None) -> bool:
    return told is not None and len(versions) == len(told) and all(map(is_, versions, told))


def desired_of(state: replica_pb2.DesiredState) -> Desired:
    """Read gateway's message."""
    return Desired(
        state.revision,
        tuple(
            DesiredVersion(
                VersionKey(row.project, row.model, row.version), row.digest, row.production
            )
            for row in state.versions
        ),
    )


def loaded_version(version: Version) -> replica_pb2.LoadedVersion:
    """Write one version as gateway and control port show it."""
    return replica_pb2.LoadedVersion(
        project=version.key.project,
        model=version.key.model,
        version=version.key.version,
        digest=version.digest,
        state=STATES[version.state],
        error_reason=version.error_reason,
        error=version.error,
        precision=version.precision,
        backend="" if version.serving is None else version.serving.backend,
        ready_time=None if version.ready_us is None else from_us(version.ready_us),
    )


def queue_s(versions: Iterable[Version], now_us: int) -> float:
    """Return the longest of the versions' mean queue times: what scaling looks at.

    The mean moves with calls: where they have ceased it would say for ever that they wait.
    """
    seen = (v.serving.snapshot() for v in versions if v.serving is not None)
    return max((s.recent_queue_s for s in seen if now_us - s.last_us < QUIET_US), default=0.0)
