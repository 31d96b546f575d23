"""The answers of models none of whose replicas lives: `inference` on a listener of its own.

Envoy comes here only when it finds no healthy replica, or every attempt at one failed. Each
answer states its tier, so that it counts against the version that should have given it. The last
prediction of the same question comes first, where it is declared and kept, then the model's rule.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.inference.v1 import prediction_service_pb2, prediction_service_pb2_grpc
from volary_kit.calls import current_call
from volary_kit.datatypes import BYTES, TYPED
from volary_kit.errors import InvalidArgument, Unavailable, VolaryError
from volary_kit.last_predictions import key_of_entity, key_of_inputs

from volary_gateway.domain.fallbacks import Fallback
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.handlers import Context
from volary_gateway.handlers.tensors import fill_outputs, inputs_of, values_of
from volary_gateway.store.kept import KeptPredictions

V2_SERVICE = "inference.GRPCInferenceService"
PREDICTION_SERVICE = "volary.inference.v1.PredictionService"
VERSION, TIER, PINNED = "volary-version", "volary-tier", "volary-pinned"
CACHE = "cache"
AGE = "volary_age_us"
COPIED = ("volary_version", "volary_digest", "volary_prediction_id")  # of the original
RETRY_S = 1.0
MAX_ROWS = 65_536  # a shape is a number that anybody can write
Fallbacks = Mapping[ModelName, Fallback]
Serving = Callable[[ModelName], Sequence[int]]  # the versions of a model that have traffic
Kept = tuple[v2.ModelInferResponse, int]


class LastPredictions:
    """Find what a model said last to the question of a call."""

    def __init__(self, kept: KeptPredictions | None, serving: Serving) -> None:
        self._kept = kept
        self._serving = serving

    async def of(
        self, fallback: Fallback, context: Context, key_of: Callable[[str], str]
    ) -> Kept | None:
        """Return the reply and its age: of the version asked for, else of another that serves.

        What a version said that has no traffic any more, or that the caller did not pin, is none.
        """
        if self._kept is None or not fallback.cached_us:
            return None
        asked = _asked_version(context)
        others = () if _is_pinned(context) else self._serving(fallback.model)
        versions = dict.fromkeys(each for each in (asked, *others) if each)
        keys = [key_of(str(VersionName.of(fallback.model, each))) for each in versions]
        return await self._kept.first(keys, fallback.cached_us) if keys else None


# the stubs want every method; what is not here the kit answers with UNIMPLEMENTED
_Servicer: Any = v2_grpc.GRPCInferenceServiceServicer


class FallbackV2Handler(_Servicer):
    """Answer V2 calls by what their model declares."""

    def __init__(self, fallbacks: Fallbacks, last: LastPredictions) -> None:
        self._fallbacks = fallbacks
        self._last = last

    async def ModelInfer(
        self, request: v2.ModelInferRequest, context: Context
    ) -> v2.ModelInferResponse:
        reply = await self._answer(request, context)
        _mark(context, reply.parameters["volary_tier"].string_param)
        return reply

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[v2.ModelInferRequest], context: Context
    ) -> AsyncIterator[v2.ModelStreamInferResponse]:
        async for request in request_iterator:
            reply = await self._answer(request, context)
            _mark(context, reply.parameters["volary_tier"].string_param)
            yield v2.ModelStreamInferResponse(infer_response=reply)

    async def ModelReady(
        self, request: v2.ModelReadyRequest, context: Context
    ) -> v2.ModelReadyResponse:
        return v2.ModelReadyResponse(ready=False)

    async def ModelMetadata(
        self, request: v2.ModelMetadataRequest, context: Context
    ) -> v2.ModelMetadataResponse:
        raise no_replica(request.name)

    async def ModelConfig(
        self, request: v2.ModelConfigRequest, context: Context
    ) -> v2.ModelConfigResponse:
        raise no_replica(request.name)

    async def ModelStatistics(
        self, request: v2.ModelStatisticsRequest, context: Context
    ) -> v2.ModelStatisticsResponse:
        raise no_replica(request.name)

    async def _answer(
        self, request: v2.ModelInferRequest, context: Context
    ) -> v2.ModelInferResponse:
        fallback = declared(self._fallbacks, request.model_name)
        inputs = inputs_of(request)
        if inputs is not None:
            outputs = [output.name for output in request.outputs]
            kept = await self._last.of(
                fallback, context, lambda version: key_of_inputs(version, outputs, inputs)
            )
            if kept is not None:
                return _again(request, *kept)
        return self._declared(request, fallback, _asked_version(context))

    def _declared(
        self, request: v2.ModelInferRequest, fallback: Fallback, version: int
    ) -> v2.ModelInferResponse:
        reply = v2.ModelInferResponse(
            model_name=request.model_name, model_version=str(version), id=request.id
        )
        rows = _rows(request.inputs)
        for output in fallback.outputs:
            tensor = reply.outputs.add(
                name=output.name, datatype="FP32", shape=[rows, len(output.row)]
            )
            tensor.contents.fp32_contents.extend(output.row * rows)
        reply.parameters["volary_version"].int64_param = version
        reply.parameters["volary_tier"].string_param = fallback.tier.value
        return reply


class FallbackPredictionHandler(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answer predictions by entity by what their model declares."""

    def __init__(self, fallbacks: Fallbacks, last: LastPredictions) -> None:
        self._fallbacks = fallbacks
        self._last = last

    async def Predict(
        self, request: prediction_service_pb2.PredictRequest, context: Context
    ) -> prediction_service_pb2.PredictResponse:
        fallback = declared(self._fallbacks, request.model)
        entity = dict(request.entity_keys)
        kept = await self._last.of(
            fallback, context, lambda version: key_of_entity(version, entity)
        )
        if kept is not None:
            _mark(context, CACHE)
            return _prediction(kept[0])
        _mark(context, fallback.tier.value)
        first = fallback.outputs[0].row[0] if fallback.outputs else 0.0
        return prediction_service_pb2.PredictResponse(
            outputs={
                output.name: prediction_service_pb2.Tensor(
                    values=output.row, shape=[1, len(output.row)]
                )
                for output in fallback.outputs
            },
            score=first,
            provenance=prediction_service_pb2.Provenance(
                version=_asked_version(context),
                tier=fallback.tier.value,
                trace_id=current_call().trace_id,
            ),
        )

    async def Explain(
        self, request: prediction_service_pb2.ExplainRequest, context: Context
    ) -> prediction_service_pb2.ExplainResponse:
        raise no_replica(request.prediction.model)

    async def StreamTokens(
        self, request: prediction_service_pb2.StreamTokensRequest, context: Context
    ) -> AsyncIterator[prediction_service_pb2.StreamTokensResponse]:
        raise no_replica(request.model)
        yield  # what makes it a stream


def _again(
    request: v2.ModelInferRequest, kept: v2.ModelInferResponse, age_us: int
) -> v2.ModelInferResponse:
    """Return a kept reply as the answer to another call: whose it is and how old it says."""
    reply = v2.ModelInferResponse(
        model_name=request.model_name, model_version=kept.model_version, id=request.id
    )
    fill_outputs(reply, kept, is_raw=bool(request.raw_input_contents))
    for name in COPIED:
        reply.parameters[name].CopyFrom(kept.parameters[name])
    reply.parameters["volary_tier"].string_param = CACHE
    reply.parameters[AGE].int64_param = age_us
    return reply


def _prediction(kept: v2.ModelInferResponse) -> prediction_service_pb2.PredictResponse:
    outputs = {
        row.name: prediction_service_pb2.Tensor(
            values=[float(each) for each in values_of(row.datatype, data)],
            shape=list(row.shape),
        )
        for row, data in zip(kept.outputs, kept.raw_output_contents, strict=True)
        if row.datatype in TYPED and row.datatype != BYTES
    }
    first = outputs[kept.outputs[0].name] if kept.outputs else None
    of = kept.parameters
    return prediction_service_pb2.PredictResponse(
        outputs=outputs,
        score=first.values[0] if first else 0.0,
        provenance=prediction_service_pb2.Provenance(
            version=of["volary_version"].int64_param,
            digest=of["volary_digest"].string_param,
            prediction_id=of["volary_prediction_id"].string_param,
            tier=CACHE,
            trace_id=current_call().trace_id,
        ),
    )


def declared(fallbacks: Fallbacks, model: str) -> Fallback:
    """Return the fallback of a model of the caller's project; raise Unavailable without one."""
    fallback = fallbacks.get(ModelName(current_call().project, model))
    if fallback is None:
        raise no_replica(model)
    return fallback


def no_replica(model: str) -> VolaryError:
    """Return what a call gets that nothing can answer."""
    return Unavailable(
        "NO_REPLICA",
        f"no replica of {model} answers",
        metadata={"model": model},
        retry_after_s=RETRY_S,
    )


def _rows(inputs: Sequence[v2.ModelInferRequest.InferInputTensor]) -> int:
    """Return how many rows were asked for: the first size of the first input."""
    rows = inputs[0].shape[0] if inputs and inputs[0].shape else 1
    if not 0 <= rows <= MAX_ROWS:
        raise InvalidArgument(
            "SHAPE_INVALID", f"a fallback answers at most {MAX_ROWS} rows", field="inputs[0].shape"
        )
    return rows


def _asked_version(context: Context) -> int:
    """Return the version that the split chose, which gave no answer."""
    for key, value in context.invocation_metadata() or ():
        if key == VERSION and isinstance(value, str) and value.isdigit():
            return int(value)
    return 0


def _is_pinned(context: Context) -> bool:
    return any(key == PINNED for key, _ in context.invocation_metadata() or ())


def _mark(context: Context, tier: str) -> None:
    """Tell the router which version did not answer, and by which tier the reply is."""
    context.set_trailing_metadata(((VERSION, str(_asked_version(context))), (TIER, tier)))
