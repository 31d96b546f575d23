"""The engine: everything between a decoded request and a reply, without a word of gRPC.

`Engine` is the seam behind which a native engine can stand; `PythonEngine` is the one here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
from volary_kit.clock import Clock
from volary_kit.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    OutOfRange,
    Unavailable,
    VolaryError,
)
from volary_kit.waiting import about_to_wait

from volary_inference.domain.batching import RunFailed, Ticket
from volary_inference.domain.decisions import Calibration, Decision
from volary_inference.domain.events import EventRing, PredictionRecord
from volary_inference.domain.failpoints import Failpoints
from volary_inference.domain.predictions import (
    InferReply,
    InferRequest,
    Provenance,
    prediction_id,
)
from volary_inference.domain.tensors import Tensor, has_nan, is_finite, numbers_of
from volary_inference.domain.versions import Serving, Version, Versions

MICROS = 1_000_000
TIER_MODEL, TIER_NONE = "model", "none"
PROBABILITY = "probability"
MAX_EVENT_FEATURES = 4_096  # a row longer than this is no feature vector
ErrorOf = Callable[[int], VolaryError]
CodeOf = Callable[[VolaryError], int]


class Engine(Protocol):
    """Answer requests to loaded versions."""

    def submit(self, request: InferRequest, deadline_s: float) -> InferReply:
        """Return the reply; `deadline_s` is on the monotonic clock.

        Raises a VolaryError: InvalidArgument for tensors that do not fit, ResourceExhausted
        `OVERLOADED` when it cannot finish in time, DeadlineExceeded, Cancelled, Unavailable.
        """
        ...

    def instead(
        self, request: InferRequest, known: Mapping[str, float], error: VolaryError
    ) -> InferReply:
        """Return what a declared tier answers without the features; raise the error."""
        ...


class PythonEngine:
    """Validate, admit, batch and run in threads of this process."""

    def __init__(
        self,
        versions: Versions,
        ring: EventRing,
        clock: Clock,
        failpoints: Failpoints,
        *,
        error_of: ErrorOf,
        code_of: CodeOf,
    ) -> None:
        self._versions = versions
        self._ring = ring
        self._clock = clock
        self._failpoints = failpoints
        self._error_of = error_of
        self._code_of = code_of

    def submit(self, request: InferRequest, deadline_s: float) -> InferReply:
        """Answer one request in the caller's thread; the run itself is the batching thread's."""
        began_s = self._clock.monotonic_s()
        version, serving = self._versions.ready(request.key)
        names = serving.signature.check_outputs(request.outputs)
        inputs = serving.signature.check(request.inputs)
        feeds = {tensor.name: tensor.array for tensor in inputs}
        responses = serving.guard.responses
        if responses is not None:
            known = responses.get(request.key.name, version.digest, names, inputs)
            if known is not None:
                return self._again(version, serving, request, known, began_s)
        rows = inputs[0].shape[0] if inputs and serving.signature.is_batched else 1
        ticket = Ticket(feeds, rows, deadline_s, request.priority)
        try:
            serving.guard.enter()
            if request.refusal is not None:
                raise request.refusal
            self._inject(request, deadline_s)
            outputs = self._run(serving, ticket, request)
            reply = self._reply(version, serving, request, ticket, _named(serving, names, outputs))
        except VolaryError as error:
            elapsed_s = self._clock.monotonic_s() - began_s
            serving.statistics.failed(elapsed_s)
            instead = serving.guard.instead(request, error)
            if instead is None:
                self._record(version, request, ticket, elapsed_s, code=self._code_of(error))
                raise
            return self._fallen_back(version, serving, request, ticket, elapsed_s, instead)
        serving.guard.answered(request, reply)
        if responses is not None:
            responses.put(request.key.name, version.digest, names, inputs, reply.outputs)
        elapsed_s = self._clock.monotonic_s() - began_s
        serving.statistics.answered(elapsed_s, ticket.queue_s, self._clock.now_us())
        self._record(version, request, ticket, elapsed_s, reply=reply)
        return reply

    def instead(
        self, request: InferRequest, known: Mapping[str, float], error: VolaryError
    ) -> InferReply:
        """Answer a request whose features could not be fetched by a declared tier.

        `known` has the features that came with the request. Raises the error when no tier answers.
        """
        version, serving = self._versions.ready(request.key)
        serving.statistics.failed(0.0)
        away = Unavailable("FEATURES_UNAVAILABLE", "the features cannot be fetched")
        instead = serving.guard.instead(request, away, known)
        ticket = Ticket({}, 1, 0.0)
        if instead is None:
            self._record(version, request, ticket, 0.0, code=self._code_of(error))
            raise error
        return self._fallen_back(version, serving, request, ticket, 0.0, instead)

    def _fallen_back(
        self,
        version: Version,
        serving: Serving,
        request: InferRequest,
        ticket: Ticket,
        elapsed_s: float,
        instead: tuple[str, tuple[Tensor, ...]],
    ) -> InferReply:
        reply = self._from_tier(version, serving, request, *instead)
        serving.statistics.fell_back(reply.provenance.tier)
        self._record(version, request, ticket, elapsed_s, reply=reply)
        return reply

    def _again(
        self,
        version: Version,
        serving: Serving,
        request: InferRequest,
        outputs: tuple[Tensor, ...],
        began_s: float,
    ) -> InferReply:
        """Return what the version has answered to the same input; it was in no batch."""
        ticket = Ticket({}, 1, 0.0)
        reply = self._reply(version, serving, request, ticket, outputs)
        provenance = replace(reply.provenance, batch_size=0, is_cached=True)
        elapsed_s = self._clock.monotonic_s() - began_s
        serving.statistics.answered(elapsed_s, 0.0, self._clock.now_us())
        reply = InferReply(outputs, provenance)
        self._record(version, request, ticket, elapsed_s, reply=reply)
        return reply

    def _inject(self, request: InferRequest, deadline_s: float) -> None:
        fault = self._failpoints.fault_of(request.key)
        if fault.delay_s > 0:
            left_s = deadline_s - self._clock.monotonic_s()
            if request.cancellation.wait(max(0.0, min(fault.delay_s, left_s))):
                raise Cancelled("CANCELLED", "the caller went away")
            if fault.delay_s > left_s:
                raise DeadlineExceeded("DEADLINE_EXCEEDED", "the model did not answer in time")
        if fault.code:
            raise self._error_of(fault.code)

    def _run(
        self, serving: Serving, ticket: Ticket, request: InferRequest
    ) -> Mapping[str, np.ndarray]:
        try:
            if serving.batcher.run_now(ticket):
                return ticket.wait(0.0)
            serving.batcher.put(ticket)
            about_to_wait()
            with request.cancellation.telling(ticket.cancel):
                return ticket.wait(max(0.0, ticket.deadline_s - self._clock.monotonic_s()))
        except RunFailed as error:
            raise Internal("RUN_FAILED", "the graph failed on this input") from error

    def _reply(
        self,
        version: Version,
        serving: Serving,
        request: InferRequest,
        ticket: Ticket,
        outputs: tuple[Tensor, ...],
    ) -> InferReply:
        _require_numbers(request.inputs, outputs)
        guard = serving.guard
        calibration = guard.calibration
        provenance = Provenance(
            key=version.key,
            digest=version.digest,
            tier=TIER_MODEL,
            route=request.origin.route,
            prediction_id=prediction_id(request.origin, version.key.version),
            queue_us=int(ticket.queue_s * MICROS),
            batch_size=ticket.batch_rows,
            backend=serving.backend,
            confidence=confidence_of(outputs, calibration),
            is_calibrated=calibration is not None,
            decision=decision_of(serving, outputs),
            precision=version.precision,
        )
        return InferReply(outputs, provenance, serving.statistics.load)

    def _from_tier(
        self,
        version: Version,
        serving: Serving,
        request: InferRequest,
        tier: str,
        outputs: tuple[Tensor, ...],
    ) -> InferReply:
        """Return a reply that the model did not give: it has no confidence, and was in no batch."""
        provenance = Provenance(
            key=version.key,
            digest=version.digest,
            tier=tier,
            route=request.origin.route,
            prediction_id=prediction_id(request.origin, version.key.version),
            queue_us=0,
            batch_size=0,
            backend="",
            confidence=None,
            decision=decision_of(serving, outputs),
        )
        return InferReply(outputs, provenance)

    def _record(
        self,
        version: Version,
        request: InferRequest,
        ticket: Ticket,
        elapsed_s: float,
        *,
        reply: InferReply | None = None,
        code: int = 0,
    ) -> None:
        now_us = self._clock.now_us()
        asked_us = request.about.event_time_us
        confidence = None if reply is None else reply.provenance.confidence
        self._ring.offer(
            PredictionRecord(
                id=prediction_id(request.origin, version.key.version),
                key=version.key,
                digest=version.digest,
                tier=TIER_NONE if reply is None else reply.provenance.tier,
                origin=request.origin,
                about=request.about,
                event_time_us=now_us if asked_us is None else asked_us,
                replied_at_us=now_us,
                features=request.about.features or _vector(request.inputs),
                outputs=() if reply is None else _flat(reply.outputs),
                confidence=confidence,
                latency_us=int(elapsed_s * MICROS),
                queue_us=int(ticket.queue_s * MICROS),
                batch_size=ticket.batch_rows,
                code=code,
                decision=None if reply is None else reply.provenance.decision,
            )
        )


def confidence_of(
    outputs: tuple[Tensor, ...], calibration: Calibration | None = None
) -> float | None:
    """Return how sure a binary classifier is: the least of max(p, 1 - p) over the rows.

    Only an output named `probability` with one value a row states a confidence; p is what the
    calibration makes of it, where there is one.
    """
    found = next((tensor for tensor in outputs if tensor.name == PROBABILITY), None)
    if found is None or not _is_score(found):
        return None
    p = found.array if calibration is None else calibration.probability(found.array)
    return float(np.maximum(p, 1 - p).min())


def decision_of(serving: Serving, outputs: tuple[Tensor, ...]) -> Decision | None:
    """Return what the score of a single row means, None without declared bands or a score."""
    bands = serving.guard.bands
    if bands is None or not outputs or not _is_score(outputs[0]) or outputs[0].array.size != 1:
        return None
    return bands.decide(float(outputs[0].array.ravel()[0]))


def _is_score(tensor: Tensor) -> bool:
    is_one_a_row = len(tensor.shape) == 1 or tensor.shape[1:] == (1,)
    return is_one_a_row and tensor.array.dtype.kind == "f"


def _named(
    serving: Serving, names: tuple[str, ...], outputs: Mapping[str, np.ndarray]
) -> tuple[Tensor, ...]:
    datatypes = serving.signature.output_types
    return tuple(Tensor(name, datatypes[name], outputs[name]) for name in names)


def _require_numbers(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Refuse to answer NaN: the caller's doing when an input is infinite, else the model's."""
    bad = next((tensor for tensor in outputs if has_nan(tensor)), None)
    if bad is None:
        return
    if all(is_finite(tensor) for tensor in inputs):
        raise Internal("OUTPUT_NOT_A_NUMBER", f"{bad.name} is NaN on finite inputs")
    raise OutOfRange("INPUT_NOT_FINITE", "an infinite input has no prediction")


def _vector(inputs: tuple[Tensor, ...]) -> tuple[float, ...]:
    """Return the one row of numbers of a request, empty when it is anything else."""
    if len(inputs) != 1 or inputs[0].array.size > MAX_EVENT_FEATURES:
        return ()
    tensor = inputs[0]
    is_row = len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[0] == 1)
    return tuple(numbers_of(tensor)) if is_row else ()


def _flat(outputs: tuple[Tensor, ...]) -> tuple[float, ...]:
    values = [value for tensor in outputs for value in numbers_of(tensor)]
    return tuple(values) if len(values) <= MAX_EVENT_FEATURES else ()
