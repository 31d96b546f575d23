"""Who owns a model's traffic: one rollout, or one experiment, or nobody.

Temporal's workflow ids keep a second rollout or a second experiment of a model from starting. A
rollout and an experiment have different ids: each sees by the traffic itself that the other has
split it. Whoever writes in between raises the generation, and the other is fenced off.
"""

from __future__ import annotations

from volary.gateway.v1 import traffic_pb2

from volary_workflows.experiment.naming import is_experiment
from volary_workflows.rollout.traffic_calls import id_of


def owner_of(traffic: traffic_pb2.Traffic) -> str:
    """Return in words who has split the traffic, empty when production alone answers."""
    shares = [each.version for each in traffic.weights if each.weight]
    if shares == [traffic.production_version] and not traffic.HasField("shadow"):
        return ""
    owner = id_of(traffic.rollout)
    if not owner:
        return "its traffic is split by hand"
    kind = "experiment" if is_experiment(owner) else "rollout"
    return f"{kind} {owner} has split its traffic"


def experiment_on(traffic: traffic_pb2.Traffic) -> str:
    """Return in words which experiment has split the traffic, empty when none has."""
    return owner_of(traffic) if is_experiment(id_of(traffic.rollout)) else ""
