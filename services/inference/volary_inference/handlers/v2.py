"""The Open Inference Protocol V2 on the data listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version as version_of_package
from typing import Any

from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc
from volary_kit.calls import Call, current_call
from volary_kit.errors import InvalidArgument, VolaryError
from volary_kit.statuses import status_of

from volary_inference.domain.batching import FIRST, LAST, NORMAL
from volary_inference.domain.engine import Engine
from volary_inference.domain.predictions import About, Cancellation, InferRequest, Origin
from volary_inference.domain.versions import Versions
from volary_inference.handlers.calls import (
    Context,
    Mark,
    cancellation_of,
    chosen,
    model_of,
    number_of,
    origin_of,
    refusal_of,
    submitted,
)
from volary_inference.handlers.v2_descriptions import (
    config_of,
    index_of,
    metadata_of,
    statistics_of,
)
from volary_inference.handlers.v2_tensors import (
    fill_outputs,
    fill_provenance,
    tensors_of,
    unknown_parameter,
)

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("model_configuration", "model_repository", "statistics")
SUBJECT, EVENT_TIME = "volary_subject", "volary_event_time"
TIMEOUT, PRIORITY = "timeout", "priority"
# tritonclient's streams may ask to be told which reply is the last one of its request
EMPTY_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"
KNOWN_PARAMETERS = frozenset({SUBJECT, EVENT_TIME, TIMEOUT, PRIORITY, EMPTY_FINAL})
MAX_SUBJECT = 256
MICROS = 1_000_000
ABOUT_NOTHING = About()


# the stubs type asyncio servers only; this one answers on threads
_Servicer: Any = rpc.GRPCInferenceServiceServicer


class V2Handler(_Servicer):
    """Translates V2 calls for the engine."""

    def __init__(
        self,
        engine: Engine,
        versions: Versions,
        is_ready: Callable[[], bool],
        stream_message_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._versions = versions
        self._is_ready = is_ready
        self._stream_message_timeout_s = stream_message_timeout_s

    def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._is_ready())

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="volary", version=version_of_package("volary-inference"), extensions=EXTENSIONS
        )

    def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        model = model_of(current_call(), request.name, "name")
        ready = self._versions.of_model(model)
        number = number_of(model, request.version)
        if number is None:
            number = self._versions.production_of(model)
        return pb.ModelReadyResponse(ready=any(v.key.version == number for v in ready))

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        call = current_call()
        model = model_of(call, request.name, "name")
        key = chosen(call, self._versions, model, number_of(model, request.version))
        version, serving = self._versions.ready(key)
        return metadata_of(version, serving, self._versions.of_model(model))

    def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        call = current_call()
        model = model_of(call, request.name, "name")
        key = chosen(call, self._versions, model, number_of(model, request.version))
        return pb.ModelConfigResponse(config=config_of(*self._versions.ready(key)))

    def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Return statistics of one version, of a model's, or of all when no model is named."""
        project = current_call().project
        found = [v for v in self._versions.all() if v.key.project == project]
        if request.name:
            model = model_of(current_call(), request.name, "name")
            found = self._versions.of_model(model)
            number = number_of(model, request.version)
            if number is not None:
                found = [self._versions.ready(model.version(number))[0]]
        return pb.ModelStatisticsResponse(
            model_stats=[statistics_of(v, v.serving) for v in found if v.serving is not None]
        )

    def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        project = current_call().project
        return pb.RepositoryIndexResponse(
            models=[
                index_of(version)
                for version in self._versions.all()
                if version.key.project == project and (version.is_ready or not request.ready)
            ]
        )

    def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        call = current_call()
        origin, cancellation = origin_of(call), cancellation_of(context)
        return self._infer(request, context, origin, cancellation, call.deadline_s)

    def ModelStreamInfer(
        self, request_iterator: Iterator[pb.ModelInferRequest], context: Context
    ) -> Iterator[pb.ModelStreamInferResponse]:
        """Answer message by message; a failed one is told in its reply, the stream goes on."""
        call, cancellation = current_call(), cancellation_of(context)
        first: str | None = None
        for position, request in enumerate(request_iterator):
            first = request.model_name if first is None else first
            origin = origin_of(call, position)
            deadline_s = call.clock.monotonic_s() + self._stream_message_timeout_s
            try:
                if request.model_name != first:
                    text = "a stream stays with the model of its first message"
                    raise InvalidArgument("MODEL_CHANGED", text, field="model_name")
                reply = self._infer(request, context, origin, cancellation, deadline_s)
            except VolaryError as error:
                failed = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
                text = f"{error.reason}: {status_of(error).message}"
                yield _streamed(request, failed, text)
            else:
                yield _streamed(request, reply)

    def _infer(
        self,
        request: pb.ModelInferRequest,
        context: Context,
        origin: Origin,
        cancellation: Cancellation,
        deadline_s: float,
    ) -> pb.ModelInferResponse:
        call = current_call()
        model = model_of(call, request.model_name, "model_name")
        key = chosen(call, self._versions, model, number_of(model, request.model_version))
        with Mark(context, key) as mark:
            asked = InferRequest(
                key=key,
                inputs=tensors_of(request),
                origin=origin,
                outputs=tuple(output.name for output in request.outputs),
                about=_about(request),
                cancellation=cancellation,
                refusal=refusal_of(call, context),
                priority=_priority(request),
            )
            deadline_s = min(deadline_s, _asked_deadline_s(request, call))
            reply = submitted(self._engine, asked, deadline_s)
            mark.of(reply)
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=str(key.version), id=request.id
        )
        fill_outputs(response, reply.outputs, is_raw=bool(request.raw_input_contents))
        fill_provenance(response, reply.provenance)
        return response


def _streamed(
    request: pb.ModelInferRequest, reply: pb.ModelInferResponse, error_message: str = ""
) -> pb.ModelStreamInferResponse:
    """Return a stream's message; each request has one reply, marked as its last where asked."""
    if EMPTY_FINAL in request.parameters and request.parameters[EMPTY_FINAL].bool_param:
        reply.parameters[FINAL].bool_param = True
    return pb.ModelStreamInferResponse(error_message=error_message, infer_response=reply)


def _about(request: pb.ModelInferRequest) -> About:
    if not request.parameters and not request.outputs:
        return ABOUT_NOTHING
    for name in request.parameters:
        if name not in KNOWN_PARAMETERS:
            raise unknown_parameter(name)
    for index, output in enumerate(request.outputs):
        for name in output.parameters:
            raise unknown_parameter(name, f"outputs[{index}]")
    subject, event_time = request.parameters.get(SUBJECT), request.parameters.get(EVENT_TIME)
    text = "" if subject is None else subject.string_param
    if len(text) > MAX_SUBJECT:
        raise InvalidArgument(
            "SUBJECT_TOO_LONG", f"{SUBJECT} has at most {MAX_SUBJECT} characters", field=SUBJECT
        )
    return About(subject=text, event_time_us=None if event_time is None else event_time.int64_param)


def _priority(request: pb.ModelInferRequest) -> int:
    """Return the message's priority; 0 and none at all are the normal one."""
    asked = request.parameters.get(PRIORITY)
    if asked is None:
        return NORMAL
    priority = asked.int64_param or asked.uint64_param
    is_number = asked.WhichOneof("parameter_choice") in ("int64_param", "uint64_param")
    if not is_number or not 0 <= priority <= LAST:
        text = f"priority is {FIRST}, {NORMAL} (as with 0) or {LAST}; {FIRST} goes first"
        raise InvalidArgument("PRIORITY_INVALID", text, field=PRIORITY)
    return priority or NORMAL


def _asked_deadline_s(request: pb.ModelInferRequest, call: Call) -> float:
    """Return the deadline of the message's own `timeout` in microseconds, infinite without."""
    asked = request.parameters.get(TIMEOUT)
    if asked is None:
        return float("inf")
    timeout_us = asked.int64_param or asked.uint64_param
    if timeout_us <= 0:
        raise InvalidArgument("TIMEOUT_INVALID", "timeout is above 0 microseconds", field=TIMEOUT)
    return call.clock.monotonic_s() + timeout_us / MICROS
