"""What a call's headers say about version and route, and what every reply says back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from volary_kit import telemetry
from volary_kit.calls import Call
from volary_kit.errors import InvalidArgument
from volary_kit.telemetry import names

from volary_inference.domain.engine import TIER_MODEL, TIER_NONE, Engine
from volary_inference.domain.predictions import (
    Cancellation,
    InferReply,
    InferRequest,
    ModelKey,
    Origin,
    VersionKey,
)
from volary_inference.domain.versions import Versions, version_not_found

Context = grpc.ServicerContext
VERSION, TIER, ROUTE, SHADOW = "volary-version", "volary-tier", "volary-route", "volary-shadow"
ATTEMPT = "x-envoy-attempt-count"


def model_of(call: Call, model: str, field: str) -> ModelKey:
    """Return the model that a call means, within the caller's project."""
    if not model:
        raise InvalidArgument("MODEL_NAME_EMPTY", "the call names no model", field=field)
    return ModelKey(call.project, model)


def number_of(model: ModelKey, text: str) -> int | None:
    """Return a version's number, None when the text is empty; raise NotFound for no number."""
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(1 << 63)):
        raise version_not_found(model, 0).with_metadata(version=text[:64])
    return int(text)


def chosen(call: Call, versions: Versions, model: ModelKey, asked: int | None) -> VersionKey:
    """Return the version that runs: Envoy's header, else the message's, else production."""
    header = number_of(model, call.text(VERSION))
    return versions.choose(model, asked if header is None else header)


def origin_of(call: Call, position: int | None = None) -> Origin:
    """Return how the call came; a stream's messages have keys of their own, by position."""
    attempt = call.text(ATTEMPT)
    key = call.request_key
    return Origin(
        request_key=key if position is None else f"{key}/{position}",
        attempt=int(attempt) if attempt.isdecimal() and len(attempt) < len("1000") else 1,
        route=call.text(ROUTE),
        is_shadow=call.text(SHADOW).lower() == "true",
        trace_id=call.trace_id,
        traceparent=telemetry.traceparent(),
    )


def cancellation_of(context: Context) -> Cancellation:
    """Return what tells the engine that the caller went away."""
    cancellation = Cancellation()
    if not context.add_callback(cancellation.cancel):
        cancellation.cancel()
    return cancellation


def submitted(engine: Engine, request: InferRequest, deadline_s: float) -> InferReply:
    """Ask the engine within a span of its own."""
    attributes = {
        names.MODEL: request.key.model,
        names.VERSION: request.key.version,
        names.SHADOW: request.origin.is_shadow,
    }
    with telemetry.span("infer", attributes) as span:
        reply = engine.submit(request, deadline_s)
        span.set(names.PREDICTION, reply.provenance.prediction_id)
        span.set(names.TIER, reply.provenance.tier)
        span.set(names.BATCH_ROWS, reply.provenance.batch_size)
        span.set(names.QUEUE_US, reply.provenance.queue_us)
    return reply


class Mark:
    """The tier that answered a call, said by whoever has the reply."""

    __slots__ = ("tier",)

    def __init__(self) -> None:
        self.tier = TIER_MODEL


@contextmanager
def marked(context: Context, key: VersionKey) -> Iterator[Mark]:
    """Tell the router which version answered, and by which tier: also when it failed."""
    _mark(context, key, TIER_NONE)
    mark = Mark()
    yield mark
    _mark(context, key, mark.tier)


def _mark(context: Any, key: VersionKey, tier: str) -> None:
    context.set_trailing_metadata(((VERSION, str(key.version)), (TIER, tier)))
