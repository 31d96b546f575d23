"""The answers of models none of whose replicas lives: `inference` on a listener of its own.

Envoy comes here only when it finds no healthy replica, or every attempt at one failed. Each
answer states its tier, so that it counts against the version that should have given it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.inference.v1 import prediction_service_pb2, prediction_service_pb2_grpc
from volary_kit.calls import current_call
from volary_kit.errors import InvalidArgument, Unavailable, VolaryError

from volary_gateway.domain.fallbacks import Fallback
from volary_gateway.domain.names import ModelName
from volary_gateway.handlers import Context

V2_SERVICE = "inference.GRPCInferenceService"
PREDICTION_SERVICE = "volary.inference.v1.PredictionService"
VERSION, TIER = "volary-version", "volary-tier"
RETRY_S = 1.0
MAX_ROWS = 65_536  # a shape is a number that anybody can write
Fallbacks = Mapping[ModelName, Fallback]


# the stubs want every method; what is not here the kit answers with UNIMPLEMENTED
_Servicer: Any = v2_grpc.GRPCInferenceServiceServicer


class FallbackV2Handler(_Servicer):
    """Answer V2 calls by what their model declares."""

    def __init__(self, fallbacks: Fallbacks) -> None:
        self._fallbacks = fallbacks

    async def ModelInfer(
        self, request: v2.ModelInferRequest, context: Context
    ) -> v2.ModelInferResponse:
        reply = self._answer(request, _asked_version(context))
        _mark(context, reply.parameters["volary_tier"].string_param)
        return reply

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[v2.ModelInferRequest], context: Context
    ) -> AsyncIterator[v2.ModelStreamInferResponse]:
        version = _asked_version(context)
        async for request in request_iterator:
            reply = self._answer(request, version)
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

    def _answer(self, request: v2.ModelInferRequest, version: int) -> v2.ModelInferResponse:
        fallback = declared(self._fallbacks, request.model_name)
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

    def __init__(self, fallbacks: Fallbacks) -> None:
        self._fallbacks = fallbacks

    async def Predict(
        self, request: prediction_service_pb2.PredictRequest, context: Context
    ) -> prediction_service_pb2.PredictResponse:
        fallback = declared(self._fallbacks, request.model)
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


def _mark(context: Context, tier: str) -> None:
    """Tell the router which version did not answer, and by which tier the reply is."""
    context.set_trailing_metadata(((VERSION, str(_asked_version(context))), (TIER, tier)))
