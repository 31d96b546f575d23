"""`envoy.service.discovery.v3.AggregatedDiscoveryService`, in its delta form."""

# pyright: reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from collections.abc import AsyncIterator

from envoy.service.discovery.v3 import ads_pb2, ads_pb2_grpc

from volary_gateway.handlers import Context
from volary_gateway.plane import Plane
from volary_gateway.xds.delta import Request, Response

SERVICE: str = ads_pb2.DESCRIPTOR.services_by_name["AggregatedDiscoveryService"].full_name


class DiscoveryHandler(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Give each Envoy the snapshot, piece by piece."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def DeltaAggregatedResources(
        self, request_iterator: AsyncIterator[Request], context: Context
    ) -> AsyncIterator[Response]:
        async for response in self._plane.serve(request_iterator):
            yield response
