"""`volary.inference.v1.ControlService` on the control listener."""

from __future__ import annotations

from typing import Any

import grpc
from volary.inference.v1 import control_service_pb2 as pb
from volary.inference.v1 import control_service_pb2_grpc as rpc
from volary_kit.errors import Unimplemented
from volary_kit.timestamps import MICROS, duration_us

from volary_inference.domain.events import EventRing
from volary_inference.domain.failpoints import Failpoint, Failpoints
from volary_inference.domain.versions import Versions
from volary_inference.lifecycle.attachment import loaded_version

SERVICE = "volary.inference.v1.ControlService"
Context = grpc.aio.ServicerContext[Any, Any]


class ControlHandler(rpc.ControlServiceServicer):
    """Shows what is loaded; arms failpoints where the process was started for that."""

    def __init__(
        self, versions: Versions, ring: EventRing, failpoints: Failpoints | None, engine: str
    ) -> None:
        self._engine = engine
        self._versions = versions
        self._ring = ring
        self._failpoints = failpoints

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        return pb.ListVersionsResponse(
            versions=[loaded_version(version) for version in self._versions.all()],
            engine=self._engine,
            dropped_events=self._ring.dropped,
        )

    async def ArmFailpoint(self, request: pb.ArmFailpointRequest, context: Context) -> pb.Failpoint:
        failpoint = request.failpoint
        self._armed().arm(
            Failpoint(
                id=failpoint.id,
                project=failpoint.project,
                model=failpoint.model,
                version=failpoint.version,
                fail_share=failpoint.fail_share,
                fail_code=failpoint.fail_code,
                slow_share=failpoint.slow_share,
                delay_s=duration_us(failpoint.delay, "failpoint.delay") / MICROS,
            )
        )
        return failpoint

    async def DisarmFailpoint(
        self, request: pb.DisarmFailpointRequest, context: Context
    ) -> pb.DisarmFailpointResponse:
        return pb.DisarmFailpointResponse(disarmed=self._armed().disarm(request.id))

    def _armed(self) -> Failpoints:
        if self._failpoints is None:
            raise Unimplemented("FAILPOINTS_OFF", "this process was started without --failpoints")
        return self._failpoints
