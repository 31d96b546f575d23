"""`volary.gateway.v1.ReplicaService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

from volary.gateway.v1 import replica_pb2, replica_service_pb2, replica_service_pb2_grpc
from volary_kit.calls import current_call
from volary_kit.errors import FailedPrecondition
from volary_kit.names import project_of
from volary_kit.timestamps import duration_from_us, duration_us, from_us, to_us

from volary_gateway.controller import Controller
from volary_gateway.domain.fleet import (
    LEASE_US,
    Farewell,
    Held,
    Readiness,
    Replica,
    VersionState,
)
from volary_gateway.domain.names import VersionName
from volary_gateway.handlers import Context
from volary_gateway.handlers.names import version_of

RESERVE_S = 0.2  # of the deadline, to answer what is known
STATES = {
    state: replica_pb2.VersionState.Value(f"VERSION_STATE_{state.name}") for state in VersionState
}
STATE_OF = {number: state for state, number in STATES.items()}


class ReplicaHandler(replica_service_pb2_grpc.ReplicaServiceServicer):
    """The desired set, and the replicas that hold it."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def Attach(
        self, request_iterator: AsyncIterator[replica_service_pb2.AttachRequest], context: Context
    ) -> AsyncIterator[replica_pb2.DesiredState]:
        reports = Reports()
        reading = asyncio.create_task(self._read(request_iterator, reports))
        sent: tuple[int, Farewell] | None = None
        try:
            while not reading.done():
                changed = asyncio.create_task(self._controller.changes.next().wait())
                farewell = self._farewell(reports)
                if (self._controller.desired.revision, farewell) != sent:
                    sent = self._controller.desired.revision, farewell
                    yield self._desired(farewell)
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            await reading
        finally:
            reading.cancel()
            if (replica := reports.last) is not None:
                self._controller.silent(replica)

    def _farewell(self, reports: Reports) -> Farewell:
        replica = reports.last
        return Farewell.NONE if replica is None else self._controller.fleet.farewell(replica.id)

    async def _read(
        self, requests: AsyncIterator[replica_service_pb2.AttachRequest], reports: Reports
    ) -> None:
        async for request in requests:
            await self._controller.report(reports.read(request))

    async def LoadVersion(
        self, request: replica_service_pb2.LoadVersionRequest, context: Context
    ) -> replica_service_pb2.VersionReadiness:
        version = version_of(request.name)
        await self._controller.load_version(version, request.digest, request.rollout_generation)
        return _readiness(self._controller.readiness(version))

    async def UnloadVersion(
        self, request: replica_service_pb2.UnloadVersionRequest, context: Context
    ) -> replica_service_pb2.VersionReadiness:
        version = version_of(request.name)
        await self._controller.unload_version(version, request.rollout_generation)
        return _readiness(self._controller.readiness(version))

    async def GetVersionReadiness(
        self, request: replica_service_pb2.GetVersionReadinessRequest, context: Context
    ) -> replica_service_pb2.VersionReadiness:
        version, call = version_of(request.name), current_call()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, call.remaining_s() - RESERVE_S)):
                while request.wait_for_ready:
                    change = self._controller.changes.next()
                    if self._controller.readiness(version).is_decided:
                        break
                    await change.wait()
        readiness = _readiness(self._controller.readiness(version))
        if request.count_calls:
            calls = await self._controller.calls_in_flight(version)
            if calls is not None:
                readiness.calls_in_flight = calls
        return readiness

    async def ListReplicas(
        self, request: replica_service_pb2.ListReplicasRequest, context: Context
    ) -> replica_service_pb2.ListReplicasResponse:
        project = project_of(request.parent)
        return replica_service_pb2.ListReplicasResponse(
            replicas=[_listed(replica, project) for replica in self._controller.fleet]
        )

    def _desired(self, farewell: Farewell) -> replica_pb2.DesiredState:
        production = {t.model: t.production for t in self._controller.traffic}
        desired = self._controller.desired
        return replica_pb2.DesiredState(
            revision=desired.revision,
            lease=duration_from_us(LEASE_US),
            farewell=replica_pb2.Farewell.Value(f"FAREWELL_{farewell}"),
            takes_unchanged=True,
            versions=[
                replica_pb2.DesiredVersion(
                    project=version.project,
                    model=version.model,
                    version=version.version,
                    digest=digest,
                    production=production.get(version.parent) == version.version,
                )
                for version, digest in desired
            ],
        )


class Reports:
    """The reports of one stream: most repeat the one before, of thousands of versions."""

    def __init__(self) -> None:
        self._told = b""
        self._whole: Replica | None = None
        self.last: Replica | None = None  # as it reported last, None before the first time

    def read(self, request: replica_service_pb2.AttachRequest) -> Replica:
        """Return the replica as it reports; the same mapping of versions while that is the same.

        Raises FailedPrecondition `VERSIONS_UNKNOWN` when it refers to a report that never came.
        """
        self.last = self._short(request) if request.versions_unchanged else self._said(request)
        return self.last

    def _said(self, request: replica_service_pb2.AttachRequest) -> Replica:
        queue_us = duration_us(request.queue_time)
        request.ClearField("queue_time")
        told = request.SerializeToString(deterministic=True)
        if self._whole is None or self._told != told:
            self._told, self._whole = told, _replica(request)
        return replace(self._whole, queue_us=queue_us)

    def _short(self, request: replica_service_pb2.AttachRequest) -> Replica:
        if self._whole is None:
            raise FailedPrecondition(
                "VERSIONS_UNKNOWN", "the first report of a stream says which versions there are"
            )
        return replace(_replica(request), versions=self._whole.versions)


def _replica(request: replica_service_pb2.AttachRequest) -> Replica:
    return Replica(
        id=request.replica_id,
        address=request.address,
        incarnation=request.incarnation,
        versions={
            VersionName(v.project, v.model, v.version): _held(v)
            for v in request.versions
            if v.state in STATE_OF
        },
        revision=request.revision,
        is_draining=request.draining,
        engine=request.engine,
        queue_us=duration_us(request.queue_time),
    )


def _held(version: replica_pb2.LoadedVersion) -> Held:
    return Held(
        digest=version.digest,
        state=STATE_OF[version.state],
        error_reason=version.error_reason,
        error=version.error,
        backend=version.backend,
        ready_us=to_us(version.ready_time) if version.HasField("ready_time") else 0,
    )


def _loaded(version: VersionName, held: Held) -> replica_pb2.LoadedVersion:
    loaded = replica_pb2.LoadedVersion(
        project=version.project,
        model=version.model,
        version=version.version,
        digest=held.digest,
        state=STATES[held.state],
        error_reason=held.error_reason,
        error=held.error,
        backend=held.backend,
    )
    if held.ready_us:
        loaded.ready_time.CopyFrom(from_us(held.ready_us))
    return loaded


def _listed(replica: Replica, project: str) -> replica_pb2.Replica:
    """Return a replica with the versions of one project: other tenants' are not told."""
    return replica_pb2.Replica(
        id=replica.id,
        address=replica.address,
        versions=[
            _loaded(version, held)
            for version, held in sorted(replica.versions.items(), key=lambda pair: pair[0])
            if version.project == project
        ],
        attached=True,
        lease_expire_time=from_us(replica.lease_until_us),
        draining=replica.is_draining,
        incarnation=replica.incarnation,
        engine=replica.engine,
        queue_time=duration_from_us(replica.queue_us),
    )


def _readiness(readiness: Readiness) -> replica_service_pb2.VersionReadiness:
    return replica_service_pb2.VersionReadiness(
        name=str(readiness.version),
        ready_replicas=readiness.ready,
        attached_replicas=readiness.attached,
        failed_replicas=readiness.failed,
        replicas=[
            replica_service_pb2.ReplicaVersion(
                replica_id=replica_id, version=_loaded(readiness.version, held)
            )
            for replica_id, held in readiness.views
        ],
        lease=duration_from_us(LEASE_US),
    )
