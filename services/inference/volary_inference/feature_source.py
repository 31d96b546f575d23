"""Online features of one entity, from the features service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from volary.features.v1 import features_service_pb2, features_service_pb2_grpc
from volary.inference.v1 import prediction_service_pb2
from volary_kit.calls import current_call
from volary_kit.errors import FailedPrecondition, Unavailable
from volary_kit.timestamps import to_us

Reply = features_service_pb2.GetOnlineFeaturesResponse
DEFAULTED = features_service_pb2.VALUE_STATE_DEFAULTED


@dataclass(frozen=True, slots=True)
class FeatureVector:
    """One row of a feature set, in its order, and where it came from."""

    values: tuple[float, ...]
    feature_set: str
    schema_hash: str
    watermark_us: int | None = None
    defaulted: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class FeatureSource:
    """Reads the vector of one prediction; blocking, within the call's deadline."""

    def __init__(self, channel: grpc.Channel) -> None:
        # the stubs type asyncio channels only; this one blocks
        stub: Any = features_service_pb2_grpc.FeaturesServiceStub
        self._stub = stub(channel)

    def read(
        self, request: prediction_service_pb2.PredictRequest, feature_set: str, schema_hash: str
    ) -> FeatureVector:
        """Return the vector of a request.

        `feature_set` is `name@version`. Raises FailedPrecondition `SCHEMA_MISMATCH` when the
        set is not the one that the version was trained with, and what features raises.
        """
        name, _, version = feature_set.partition("@")
        message = features_service_pb2.GetOnlineFeaturesRequest(
            feature_set=f"projects/{current_call().project}/featureSets/{name}",
            version=int(version) if version.isdecimal() else 0,
            entities={
                entity: features_service_pb2.EntityKeys(keys=[key])
                for entity, key in request.entity_keys.items()
            },
            request_fields={
                field: features_service_pb2.FieldValues(values=[value])
                for field, value in request.request_fields.items()
            },
            event_times=[request.event_time] if request.HasField("event_time") else [],
            min_watermark=request.min_watermark if request.HasField("min_watermark") else None,
        )
        reply: features_service_pb2.GetOnlineFeaturesResponse = self._stub.GetOnlineFeatures(
            message
        )
        if reply.schema_hash != schema_hash:
            raise FailedPrecondition(
                "SCHEMA_MISMATCH",
                "the feature set is not the one that the version was trained with",
                {"feature_set": feature_set, "served": reply.feature_set},
            )
        return _vector(reply)


def _vector(reply: Reply) -> FeatureVector:
    if reply.rows != 1 or len(reply.values) != len(reply.feature_names):
        raise Unavailable("FEATURES_INCOMPLETE", "features did not answer with one whole row")
    names = reply.feature_names
    return FeatureVector(
        values=tuple(reply.values),
        feature_set=reply.feature_set,
        schema_hash=reply.schema_hash,
        watermark_us=to_us(reply.watermark) if reply.HasField("watermark") else None,
        defaulted=tuple(names[i] for i, state in enumerate(reply.states) if state == DEFAULTED),
        names=tuple(names),
    )
