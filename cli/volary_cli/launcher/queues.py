"""How long calls wait at each inference replica, as gateway knows it."""

from __future__ import annotations

from collections.abc import Sequence

from volary.gateway.v1 import replica_service_pb2, replica_service_pb2_grpc
from volary_kit.calls import DEFAULT_PROJECT
from volary_kit.channels import Channels
from volary_kit.clock import Clock
from volary_kit.identity import SigningKey, TokenSource
from volary_kit.outgoing import MeshDress
from volary_kit.timestamps import duration_us

CALL_S = 5.0


class Queues:
    """Ask gateway under the launcher's own identity."""

    def __init__(self, gateway: str, key: SigningKey, clock: Clock) -> None:
        dress = MeshDress(TokenSource(key, clock))
        self._channels = Channels(key.kid, {"gateway": gateway}, dress)

    async def queue_us(self) -> Sequence[int]:
        """Return the wait at each replica that takes calls; raises VolaryError."""
        stub = replica_service_pb2_grpc.ReplicaServiceStub(self._channels.to("gateway"))
        request = replica_service_pb2.ListReplicasRequest(parent=f"projects/{DEFAULT_PROJECT}")
        reply = await stub.ListReplicas(request, timeout=CALL_S)
        return [duration_us(each.queue_time) for each in reply.replicas if not each.draining]

    async def close(self) -> None:
        """Close the connection."""
        await self._channels.close()
