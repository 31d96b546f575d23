"""`volary.inference.v1.PredictionService`: entity keys in, prediction out, explained if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from volary.inference.v1 import prediction_service_pb2 as pb
from volary.inference.v1 import prediction_service_pb2_grpc as rpc
from volary_kit.calls import Call, current_call
from volary_kit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
    VolaryError,
)
from volary_kit.timestamps import duration_from_us, from_us, to_us

from volary_inference.domain.batching import NORMAL
from volary_inference.domain.decisions import Decision
from volary_inference.domain.engine import TIER_MODEL, Engine
from volary_inference.domain.explaining import (
    Explanation,
    background_of,
    batched_score,
    explain,
)
from volary_inference.domain.predictions import About, InferReply, InferRequest, VersionKey
from volary_inference.domain.tensors import Tensor, numbers_of
from volary_inference.domain.versions import Serving, Versions
from volary_inference.feature_source import FeatureSource, FeatureVector
from volary_inference.handlers.calls import (
    Context,
    Mark,
    cancellation_of,
    chosen,
    model_of,
    origin_of,
    submitted,
)

# features did not answer, and it is not the caller's doing
AWAY = (Unavailable, DeadlineExceeded, ResourceExhausted, Internal)
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
        with self._asked(request, call, context) as asked:
            if asked.away is None:
                reply = submitted(self._engine, asked.request, call.deadline_s)
            else:
                reply = self._engine.instead(asked.request, asked.known, asked.away)
            asked.mark.of(reply)
        return _response(reply, asked.vector, call)

    def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        """Predict, then ask the same version about rows between this one and its golden rows."""
        call = current_call()
        prediction = pb.PredictRequest()
        prediction.CopyFrom(request.prediction)
        prediction.model = request.model
        with self._asked(prediction, call, context) as asked:
            if asked.away is not None:
                raise asked.away
            serving, row = asked.serving, asked.request.inputs[0].array[0]
            background = background_of(serving)
            reply = submitted(self._engine, asked.request, call.deadline_s)
            asked.mark.of(reply)
            if reply.provenance.tier != TIER_MODEL:
                raise Unavailable("NOT_EXPLAINABLE_NOW", "the model itself did not answer")
            score = batched_score(serving, call.deadline_s, call.clock)
            found = explain(row, background, score, request.max_evaluations)
        return _explained(reply, asked, found, call)

    @contextmanager
    def _asked(self, request: pb.PredictRequest, call: Call, context: Context) -> Iterator[_Asked]:
        """Choose the version, fetch the features; the reply is marked with what answered."""
        model = model_of(call, request.model, "model")
        key = chosen(call, self._versions, model, request.version or None)
        with Mark(context, key) as mark:
            version, serving = self._versions.ready(key)
            if not version.feature_set:
                raise FailedPrecondition(
                    "FEATURE_SET_MISSING", "the version takes tensors: ask it through V2"
                )
            away: VolaryError | None = None
            try:
                vector = self._features.read(request, version.feature_set, version.schema_hash)
            except AWAY as error:
                away = error  # the version may declare who answers without features
                vector = FeatureVector((), version.feature_set, version.schema_hash)
            asked = _request(request, key, serving, vector, call, context)
            yield _Asked(asked, serving, vector, mark, away, _known(request))


@dataclass(frozen=True)
class _Asked:
    request: InferRequest
    serving: Serving
    vector: FeatureVector
    mark: Mark
    away: VolaryError | None  # why there are no features
    known: Mapping[str, float]  # features that came with the request


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
        inputs=(Tensor(name, "FP32", row),) if vector.values else (),
        origin=origin_of(call),
        about=about,
        cancellation=cancellation_of(context),
        priority=request.priority or NORMAL,
    )


def _known(request: pb.PredictRequest) -> dict[str, float]:
    """Return the numbers among what came with the request, by the features' names."""
    found: dict[str, float] = {}
    for name, value in request.request_fields.items():
        which = value.WhichOneof("kind")
        number = getattr(value, which) if which else None
        if isinstance(number, bool | int | float):
            found[name] = float(number)
    return found


def _response(reply: InferReply, vector: FeatureVector, call: Call) -> pb.PredictResponse:
    outputs = {
        tensor.name: pb.Tensor(values=numbers_of(tensor), shape=list(tensor.shape))
        for tensor in reply.outputs
    }
    found = reply.provenance
    return pb.PredictResponse(
        outputs=outputs,
        score=numbers_of(reply.outputs[0])[0] if reply.outputs else 0.0,
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
            calibrated=found.is_calibrated,
            cached=found.is_cached,
            precision=found.precision,
        ),
        feature_watermark=None if vector.watermark_us is None else from_us(vector.watermark_us),
        defaulted_features=vector.defaulted,
        decision=None if found.decision is None else _decision(found.decision),
    )


def _decision(found: Decision) -> pb.Decision:
    return pb.Decision(reason_codes=found.reason_codes, action=found.action)


def _explained(
    reply: InferReply, asked: _Asked, found: Explanation, call: Call
) -> pb.ExplainResponse:
    """Write attributions, the largest first, and what they add to the decision."""
    vector = asked.vector
    names = vector.names
    order = sorted(range(len(names)), key=lambda i: -abs(found.contributions[i]))
    response = pb.ExplainResponse(
        attributions=[
            pb.Attribution(
                feature=names[i], value=vector.values[i], contribution=found.contributions[i]
            )
            for i in order
        ],
        base_score=found.base,
        prediction=_response(reply, vector, call),
        evaluations=found.evaluations,
    )
    bands = asked.serving.guard.bands
    if bands is not None:
        raised = sorted(
            (i for i in order if found.contributions[i] > 0),
            key=lambda i: -found.contributions[i],
        )
        decided = bands.decide(response.prediction.score, [names[i] for i in raised])
        response.prediction.decision.CopyFrom(_decision(decided))
    return response
