"""Gateway's traffic as rollouts and experiments write it: fenced, and waited for."""

from __future__ import annotations

import asyncio

from volary.gateway.v1 import traffic_pb2, traffic_service_pb2, traffic_service_pb2_grpc
from volary_kit.channels import Channels
from volary_kit.errors import NotFound

from volary_workflows.rollout.names import traffic_name
from volary_workflows.rollout.tasks import Subject, TrafficState

EFFECT_POLL_S = 0.1


class TrafficCalls:
    """The traffic of a model, read and written."""

    def __init__(self, channels: Channels) -> None:
        self._stub = traffic_service_pb2_grpc.TrafficServiceStub(channels.to("gateway"))

    async def current(self, subject: Subject) -> traffic_pb2.Traffic | None:
        """Return the traffic, None for a model that has none yet."""
        request = traffic_service_pb2.GetTrafficRequest(name=traffic_name(subject))
        try:
            return await self._stub.GetTraffic(request)
        except NotFound:
            return None

    async def put(
        self, request: traffic_service_pb2.SetTrafficRequest, subject: Subject
    ) -> traffic_pb2.Traffic:
        """Write the traffic and return it once it is in effect, or somebody wrote since.

        Raises Aborted `STALE_GENERATION` when it is fenced off.
        """
        traffic = await self._stub.SetTraffic(request)
        while not traffic.in_effect:
            await asyncio.sleep(EFFECT_POLL_S)
            now = await self.current(subject)
            if now is None or now.generation != traffic.generation:
                break
            traffic = now
        return traffic


def state_of(traffic: traffic_pb2.Traffic) -> TrafficState:
    """Return traffic as a workflow knows it."""
    cause = traffic_pb2.Cause.Name(traffic.cause).removeprefix("CAUSE_")
    return TrafficState(traffic.generation, cause, id_of(traffic.rollout))


def id_of(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rpartition("/")[2]
