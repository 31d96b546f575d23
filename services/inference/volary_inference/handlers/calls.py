"""What a call's headers say about version and route, and what every reply says back."""

from __future__ import annotations

from typing import Self

import grpc
from volary_kit import telemetry
from volary_kit.calls import Call
from volary_kit.errors import InvalidArgument, ResourceExhausted, VolaryError
from volary_kit.telemetry import names

from volary_inference.domain.batching import TOO_LATE
from volary_inference.domain.engine import MICROS, TIER_MODEL, TIER_NONE, Engine
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
REFUSED = "volary-refused"  # set by the native engine: microseconds until there may be room
BEHIND = "unix:"  # a peer that only the native engine can be
VERSION, TIER, ROUTE, SHADOW = "volary-version", "volary-tier", "volary-route", "volary-shadow"
LOAD = "endpoint-load-metrics"  # ORCA: how Envoy weighs this replica
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


def refusal_of(call: Call, context: Context) -> VolaryError | None:
    """Return the native engine's refusal of a call that it hands over for what a tier says."""
    retry_us = call.text(REFUSED)
    if not retry_us.isdecimal() or not context.peer().startswith(BEHIND):
        return None
    return ResourceExhausted("OVERLOADED", TOO_LATE, retry_after_s=int(retry_us) / MICROS)


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
    with telemetry.span("infer", attributes, is_current=False) as span:
        reply = engine.submit(request, deadline_s)
        found = reply.provenance
        span.update(
            {
                names.PREDICTION: found.prediction_id,
                names.TIER: found.tier,
                names.BATCH_ROWS: found.batch_size,
                names.QUEUE_US: found.queue_us,
            }
        )
    return reply


class Mark:
    """Tells the router which version answered, and by which tier: also when it failed.

    Tier and load are set by whoever has the reply.
    """

    __slots__ = ("_context", "_key", "load", "tier")

    def __init__(self, context: Context, key: VersionKey) -> None:
        self._context = context
        self._key = key
        self.tier = TIER_MODEL
        self.load = ""

    def __enter__(self) -> Self:
        return self

    def of(self, reply: InferReply) -> None:
        """Take from a reply what the router is told of it."""
        self.tier, self.load = reply.provenance.tier, reply.load

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        tier = self.tier if kind is None else TIER_NONE
        marks = ((VERSION, str(self._key.version)), (TIER, tier))
        if self.load:
            marks = (*marks, (LOAD, self.load))
        self._context.set_trailing_metadata(marks)
