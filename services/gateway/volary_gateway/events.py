"""What gateway tells the mesh."""

from __future__ import annotations

from volary.events.v1 import event_pb2
from volary_kit.timestamps import from_us

from volary_gateway.domain.traffic import Traffic


def traffic_event(traffic: Traffic) -> event_pb2.Event:
    """Return the event of a change; its id is the change's own, so that it has one effect."""
    at = from_us(traffic.updated_us)
    return event_pb2.Event(
        id=f"traffic/{traffic.model.scope}/{traffic.generation}",
        project=traffic.model.project,
        event_time=at,
        known_at=at,
        traffic=event_pb2.TrafficEvent(
            model=traffic.model.model,
            generation=traffic.generation,
            weights=[
                event_pb2.VersionWeight(version=w.version, weight=w.weight) for w in traffic.weights
            ],
            shadow_version=traffic.shadow.version if traffic.shadow else 0,
            rollout=traffic.rollout,
            step=traffic.step,
            cause=traffic.cause,
            principal=traffic.principal,
            reason=traffic.reason,
            effective_at=at,
        ),
    )
