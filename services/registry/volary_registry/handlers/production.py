"""Put together what is in production."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from volary.registry.v1.model_pb2 import Production
from volary_kit.database import Transaction

from volary_registry.domain.production import deltas
from volary_registry.handlers import messages
from volary_registry.store import deployments, evaluations, versions

GATE = "gate"


async def production_of(transaction: Transaction, model: sa.Row[Any]) -> Production:
    """Return what serves a model, since when, by which decision, against the previous."""
    key = (model.project, model.model)
    numbers = {model.production_version, model.previous_version} - {0}
    generations = {model.production_generation, model.latest_generation} - {0}
    found = await versions.several(transaction, *key, numbers)
    changes = await deployments.several(transaction, *key, generations)
    gate = await evaluations.newest(transaction, *key, model.production_version, GATE)
    answer = Production(
        model=f"projects/{model.project}/models/{model.model}",
        version=messages.version_of(found[model.production_version]),
        owner=model.owner,
        on_call=model.on_call,
        gate=None if gate is None else messages.evaluation_of(gate),
    )
    if model.production_generation in changes:
        answer.deployment.CopyFrom(messages.deployment_of(changes[model.production_generation]))
        answer.since.CopyFrom(answer.deployment.effective_time)
    if model.latest_generation in changes:
        latest = messages.deployment_of(changes[model.latest_generation])
        answer.latest_deployment.CopyFrom(latest)
    if model.previous_version in found:
        answer.previous.CopyFrom(messages.version_of(found[model.previous_version]))
        changed = deltas(dict(answer.version.metrics), dict(answer.previous.metrics))
        answer.metric_deltas.update(changed)
    return answer
