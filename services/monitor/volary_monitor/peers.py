"""What the monitor asks of registry and features: facts that never change once they are there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from volary.features.v1.feature_pb2 import Feature, ReferenceDistribution, TrainingSet
from volary.features.v1.features_service_pb2 import GetFeatureSetRequest, GetTrainingSetRequest
from volary.features.v1.features_service_pb2_grpc import FeaturesServiceStub
from volary.registry.v1.model_pb2 import ModelVersion, ScoreDistribution
from volary.registry.v1.registry_service_pb2 import GetModelVersionRequest
from volary.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from volary_kit.calls import act_for
from volary_kit.channels import Channels
from volary_kit.errors import NotFound

from volary_monitor.domain.bins import Reference

DEFAULT_THRESHOLD = 0.5  # of a version that declares none
SCORE = "score"


@dataclass(frozen=True)
class VersionFacts:
    """What the registry knows of a version; `training_set` is empty when it names none.

    `score` is what its score was like when it was registered, None where nobody measured.
    """

    threshold: float
    metrics: dict[str, float]
    training_set: str
    score: Reference | None = None


@dataclass(frozen=True)
class TrainingReference:
    """The distributions of a training set, in the order of its feature vectors."""

    training_set: str
    schema_hash: str
    features: tuple[Reference, ...]


class Peers:
    """Answers by name, asked once each."""

    def __init__(self, channels: Channels) -> None:
        self._registry = RegistryServiceStub(channels.to("registry"))
        self._features = FeaturesServiceStub(channels.to("features"))
        self._versions: dict[tuple[str, str, int], VersionFacts] = {}
        self._references: dict[str, TrainingReference] = {}

    async def version(self, project: str, model: str, version: int) -> VersionFacts:
        """Return what is known of a version; nothing of one that is not registered.

        Raises Unavailable.
        """
        key = (project, model, version)
        if key not in self._versions:
            name = f"projects/{project}/models/{model}/versions/{version}"
            try:
                with act_for(project):
                    found = await self._registry.GetModelVersion(GetModelVersionRequest(name=name))
            except NotFound:
                return VersionFacts(DEFAULT_THRESHOLD, {}, "")  # it may be registered later
            self._versions[key] = facts_of(found)
        return self._versions[key]

    async def reference(self, project: str, training_set: str) -> TrainingReference:
        """Return what the features were like in training; raise NotFound, Unavailable."""
        if training_set not in self._references:
            with act_for(project):
                found = await self._features.GetTrainingSet(
                    GetTrainingSetRequest(name=training_set)
                )
                features = await self._vector(project, found)
            self._references[training_set] = reference_of(found, features)
        return self._references[training_set]

    async def _vector(self, project: str, found: TrainingSet) -> list[Feature]:
        name, _, version = found.feature_set.rpartition("/")[2].partition("@")
        request = GetFeatureSetRequest(
            name=f"projects/{project}/featureSets/{name}", version=int(version or 0)
        )
        return list((await self._features.GetFeatureSet(request)).features)


def facts_of(found: ModelVersion) -> VersionFacts:
    """Return what the monitor needs of a version."""
    score = found.score_distribution
    return VersionFacts(
        found.threshold or DEFAULT_THRESHOLD,
        dict(found.metrics),
        found.lineage.training_set,
        _reference(SCORE, score) if score.counts else None,
    )


def reference_of(found: TrainingSet, vector: list[Feature]) -> TrainingReference:
    """Return the distributions of a training set by the order of a vector."""
    by_name = {each.feature: each for each in found.distributions}
    is_complete = all(each.name in by_name for each in vector)
    features = [_reference(each.name, by_name[each.name]) for each in vector] if is_complete else []
    return TrainingReference(found.name, found.schema_hash, tuple(features))


def _reference(feature: str, found: ReferenceDistribution | ScoreDistribution) -> Reference:
    return Reference(
        feature=feature,
        edges=np.array(found.edges, dtype=np.float64),
        counts=np.array(found.counts, dtype=np.int64),
        mean=found.mean,
        standard_deviation=found.standard_deviation,
        minimum=found.minimum,
        maximum=found.maximum,
    )
