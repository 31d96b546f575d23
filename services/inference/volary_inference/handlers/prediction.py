"""`volary.inference.v1.PredictionService`: entity keys in, prediction out."""

from __future__ import annotations

from typing import Any

import numpy as np
from volary.inference.v1 import prediction_service_pb2 as pb
from volary.inference.v1 import prediction_service_pb2_grpc as rpc
from volary_kit.calls import Call, current_call
from volary_kit.errors import FailedPrecondition
from volary_kit.timestamps import duration_from_us, from_us, to_us

from volary_inference.domain.engine import Engine
from volary_inference.domain.predictions import About, InferReply, InferRequest, VersionKey
from volary_inference.domain.tensors import Tensor, numbers_of
from volary_inference.domain.versions import Serving, Versions
from volary_inference.feature_source import FeatureSource, FeatureVector
from volary_inference.handlers.calls import (
    Context,
    cancellation_of,
    chosen,
    marked,
    model_of,
    origin_of,
    submitted,
)

SERVICE = "volary.inference.v1.PredictionService"


# the stubs type asyncio servers only; this one answers on threads
_Servicer: Any = rpc.PredictionServiceServicer


class PredictionHandler(_Servicer):
    """Fetches the features of an entity, then asks the engine as any V2 call does."""

    def __init__(self, engine: Engine, versions: Versions, features: FeatureSource) -> None:
        self._engine = engine
        self._versions = versions
        self._features = features

    def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        call = current_call()
        model = model_of(call, request.model, "model")
        key = chosen(call, self._versions, model, request.version or None)
        with marked(context, key):
            version, serving = self._versions.ready(key)
            if not version.feature_set:
                raise FailedPrecondition(
                    "FEATURE_SET_MISSING", "the version takes tensors: ask it through V2"
                )
            vector = self._features.read(request, version.feature_set, version.schema_hash)
            asked = _request(request, key, serving, vector, call, context)
            reply = submitted(self._engine, asked, call.deadline_s)
        return _response(reply, vector, call)


def _request(
    request: pb.PredictRequest,
    key: VersionKey,
    serving: Serving,
    vector: FeatureVector,
    call: Call,
    context: Context,
) -> InferRequest:
    about = About(
        subject=request.subject,
        event_time_us=to_us(request.event_time) if request.HasField("event_time") else None,
        entity_keys=dict(request.entity_keys),
        features=vector.values,
        feature_set=vector.feature_set,
        schema_hash=vector.schema_hash,
        feature_watermark_us=vector.watermark_us,
    )
    name = serving.signature.inputs[0].name
    row = np.array([vector.values], np.float32)  # as the trainer rounds them
    return InferRequest(
        key=key,
        inputs=(Tensor(name, "FP32", row),),
        origin=origin_of(call),
        about=about,
        cancellation=cancellation_of(context),
    )


def _response(reply: InferReply, vector: FeatureVector, call: Call) -> pb.PredictResponse:
    outputs = {
        tensor.name: pb.Tensor(values=numbers_of(tensor), shape=list(tensor.shape))
        for tensor in reply.outputs
    }
    found = reply.provenance
    return pb.PredictResponse(
        outputs=outputs,
        score=numbers_of(reply.outputs[0])[0],
        provenance=pb.Provenance(
            version=found.key.version,
            digest=found.digest,
            tier=found.tier,
            prediction_id=found.prediction_id,
            route=found.route,
            confidence=found.confidence or 0.0,
            queue_time=duration_from_us(found.queue_us),
            batch_size=found.batch_size,
            trace_id=call.trace_id,
            backend=found.backend,
            feature_set=vector.feature_set,
            schema_hash=vector.schema_hash,
        ),
        feature_watermark=None if vector.watermark_us is None else from_us(vector.watermark_us),
        defaulted_features=vector.defaulted,
    )
