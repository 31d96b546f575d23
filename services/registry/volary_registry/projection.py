"""Follow gateway's events: the deployment history and the production pointer."""

from __future__ import annotations

from collections.abc import Sequence

from volary.events.v1.event_pb2 import Event
from volary.registry.v1.model_pb2 import Deployment
from volary_kit.database import Database, Transaction

from volary_registry.domain.production import Change, advanced
from volary_registry.store import deployments, models


class Projection:
    """Apply traffic events; each generation has its effect once, whatever is delivered again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def handle(self, events: Sequence[Event]) -> None:
        """Apply a batch in one transaction."""
        async with self._database.transaction() as transaction:
            for event in events:
                if event.WhichOneof("payload") == "traffic":
                    await self._apply(transaction, event)

    async def _apply(self, transaction: Transaction, event: Event) -> None:
        traffic = event.traffic
        pointer = await models.locked_pointer(transaction, event.project, traffic.model)
        if pointer is None:
            return  # traffic of a model that the registry does not know is gateway's own matter
        change = Change(
            traffic.generation,
            {weight.version: weight.weight for weight in traffic.weights},
            traffic.production_version,
        )
        moved = advanced(pointer, change)
        is_new = await deployments.add(
            transaction,
            project=event.project,
            model=traffic.model,
            generation=traffic.generation,
            production_version=moved.version,
            body=_deployment(event, moved.version).SerializeToString(),
        )
        if is_new and moved != pointer:
            await models.set_pointer(transaction, event.project, traffic.model, moved)


def _deployment(event: Event, production_version: int) -> Deployment:
    traffic = event.traffic
    return Deployment(
        name=f"projects/{event.project}/models/{traffic.model}/deployments/{traffic.generation}",
        generation=traffic.generation,
        weights={weight.version: weight.weight for weight in traffic.weights},
        shadow_version=traffic.shadow_version,
        production_version=production_version,
        rollout=traffic.rollout,
        step=traffic.step,
        cause=traffic.cause,
        principal=traffic.principal,
        reason=traffic.reason,
        effective_time=traffic.effective_at,
    )
