"""What stands around one version: a circuit breaker, and what answers in its place.

The tiers are tried in order: `cache` is the last prediction of the same entity, else of the same
input; `rule` is the declared expression over the features; `none` is a reply without a
prediction. A tier that is not declared, or has nothing to say, is passed over.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from volary_kit import expressions, serving
from volary_kit.clock import Clock
from volary_kit.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    VolaryError,
)
from volary_kit.expressions import Expression

from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.decisions import Bands, Calibration
from volary_inference.domain.predictions import InferReply, InferRequest
from volary_inference.domain.responses import NoStore, ReplyStore, Responses
from volary_inference.domain.signatures import Signature
from volary_inference.domain.tensors import Tensor

TIER_CACHE, TIER_RULE, TIER_NONE = "cache", "rule", "none"
# the model could not answer; everything else is the caller's own doing
REPLACED = (ResourceExhausted, Unavailable, Internal)
FAILED = (Internal, DeadlineExceeded)  # and this is what a breaker counts
MICROS = 1_000_000
MAX_KEPT_BYTES = 16 << 10  # of inputs and outputs of one call
Outputs = tuple[Tensor, ...]


class CircuitBreaker:
    """Opens when too many of the last calls failed; lets one call try after a while."""

    def __init__(self, rule: serving.Breaker, clock: Clock) -> None:
        self._rule = rule
        self._clock = clock
        self._lock = threading.Lock()
        self._outcomes: deque[bool] = deque(maxlen=rule.calls)
        self._open_until_s: float | None = None

    def enter(self) -> None:
        """Let a call in; raise Unavailable `BREAKER_OPEN` with the time to come back."""
        with self._lock:
            if self._open_until_s is None:
                return
            left_s = self._open_until_s - self._clock.monotonic_s()
            if left_s > 0:
                raise Unavailable(
                    "BREAKER_OPEN", "too many calls of this version failed", retry_after_s=left_s
                )
            # one call tries; the others wait for what becomes of it
            self._open_until_s = self._clock.monotonic_s() + self._rule.open_for / MICROS

    def note(self, *, has_failed: bool) -> None:
        """Learn how a call ended."""
        with self._lock:
            if self._open_until_s is not None:
                if not has_failed:
                    self._open_until_s = None
                    self._outcomes.clear()
                return
            self._outcomes.append(has_failed)
            is_full = len(self._outcomes) == self._rule.calls
            if is_full and sum(self._outcomes) >= self._rule.failures * self._rule.calls:
                self._open_until_s = self._clock.monotonic_s() + self._rule.open_for / MICROS

    @property
    def is_open(self) -> bool:
        """True while calls are turned away."""
        return self._open_until_s is not None


class ReplyCache:
    """The last outputs by entity or input, the least recently stored forgotten first."""

    def __init__(self, rule: serving.Cache, clock: Clock) -> None:
        self._rule = rule
        self._clock = clock
        self._lock = threading.Lock()
        self._replies: OrderedDict[Hashable, tuple[float, Outputs]] = OrderedDict()

    @property
    def max_age_us(self) -> int:
        """How old an answer may be."""
        return self._rule.max_age

    def put(self, key: Hashable, outputs: Outputs) -> None:
        """Remember what the model said."""
        with self._lock:
            self._replies[key] = (self._clock.monotonic_s(), outputs)
            self._replies.move_to_end(key)
            if len(self._replies) > self._rule.entries:
                self._replies.popitem(last=False)

    def get(self, key: Hashable) -> Outputs | None:
        """Return what it said, None when that is too old or unknown."""
        with self._lock:
            found = self._replies.get(key)
        if found is None or self._clock.monotonic_s() - found[0] > self._rule.max_age / MICROS:
            return None
        return found[1]


@dataclass(frozen=True, slots=True)
class Said:
    """What a version answered to a call, and for how long that may stand in for an answer."""

    request: InferRequest
    reply: InferReply
    max_age_us: int


class Keeper(Protocol):
    """Keeps what versions said last where it outlives the replica; never holds up a call."""

    def keep(self, said: Said) -> None:
        """Keep it in place of what the version said before to the same question."""
        ...


@dataclass(frozen=True)
class Rule:
    """An expression over the columns of the one input, for the one output."""

    expression: Expression
    features: tuple[str, ...]
    output: str
    datatype: str

    def row_of(self, known: Mapping[str, float]) -> Outputs | None:
        """Return the input of one row of which only some columns are known; None: too few are."""
        if not self.expression.names <= known.keys():
            return None
        row = [known.get(name, np.nan) for name in self.features]  # the others are never looked at
        return (Tensor("", "FP64", np.array([row], np.float64)),)

    def answer(self, inputs: Outputs) -> Outputs | None:
        """Return a score a row; None where a row has no value."""
        rows = np.asarray(inputs[0].array, np.float64).reshape(-1, len(self.features)).tolist()
        found: list[float] = []
        for row in rows:
            value = self.expression.value(dict(zip(self.features, row, strict=True)))
            if value is None:
                return None
            found.append(value)
        array = np.array(found, DATATYPES[self.datatype].dtype).reshape(-1, 1)
        return (Tensor(self.output, self.datatype, array),)


@dataclass
class Guard:
    """The declared surroundings of one version; each part is None where it is not declared."""

    breaker: CircuitBreaker | None = None
    cache: ReplyCache | None = None
    keeper: Keeper | None = None  # what it is told outlives the replica
    rule: Rule | None = None
    has_none: bool = False
    calibration: Calibration | None = None
    responses: Responses | None = None
    bands: Bands | None = None
    features: tuple[str, ...] = ()
    background: np.ndarray | None = field(default=None, repr=False)
    instances: int = 1  # batching threads that are declared

    @property
    def is_plain(self) -> bool:
        """True when no answer depends on those before it: an engine may leave the guard out.

        What bands make of a score, such an engine says itself; for a lower tier it asks here.
        """
        parts = (self.breaker, self.cache, self.responses)
        return self.instances == 1 and all(part is None for part in parts)

    @property
    def has_tiers(self) -> bool:
        """True when something answers in the model's place."""
        return self.has_none or self.cache is not None or self.rule is not None

    def enter(self) -> None:
        """Let a call in; raise Unavailable `BREAKER_OPEN`."""
        if self.breaker is not None:
            self.breaker.enter()

    def answered(self, request: InferRequest, reply: InferReply) -> None:
        """Learn what the model said."""
        if self.breaker is not None:
            self.breaker.note(has_failed=False)
        if self.cache is not None:
            self.cache.put(_key_of(request), reply.outputs)
            if self.keeper is not None and _is_to_be_kept(request, reply):
                self.keeper.keep(Said(request, reply, self.cache.max_age_us))

    def instead(
        self, request: InferRequest, error: VolaryError, known: Mapping[str, float] | None = None
    ) -> tuple[str, Outputs] | None:
        """Return the tier that answers in place of an error, and its outputs; None: none does.

        `known` has what there is of the features where they could not be fetched.
        """
        if self.breaker is not None and isinstance(error, FAILED):
            self.breaker.note(has_failed=True)
        if not isinstance(error, REPLACED):
            return None
        found = self.cache.get(_key_of(request)) if self.cache is not None else None
        if found is not None:
            return TIER_CACHE, found
        asked = set(request.outputs)
        if self.rule is not None and asked <= {self.rule.output}:
            inputs = request.inputs if known is None else self.rule.row_of(known)
            found = None if inputs is None else self.rule.answer(inputs)
            if found is not None:
                return TIER_RULE, found
        return (TIER_NONE, ()) if self.has_none else None


def guard_of(
    declared: serving.Serving,
    signature: Signature,
    clock: Clock,
    store: ReplyStore | None = None,
    keeper: Keeper | None = None,
) -> Guard:
    """Build what a declaration asks for; raise InvalidArgument where it does not fit the graph.

    `store` keeps replies; without one a declared response cache never has any. `keeper` is told
    what a version with a declared cache says.
    """
    declared.require_features()
    fallback, caching = declared.fallback, declared.response_cache
    return Guard(
        breaker=CircuitBreaker(declared.breaker, clock) if declared.breaker else None,
        cache=ReplyCache(fallback.cache, clock) if fallback.cache else None,
        keeper=keeper,
        rule=None if fallback.rule is None else _rule(declared, fallback.rule, signature),
        has_none=fallback.none,
        responses=Responses(caching, store or NoStore(), clock) if caching else None,
        bands=Bands(declared.bands, declared.reasons) if declared.bands else None,
        features=tuple(declared.features),
    )


def _rule(declared: serving.Serving, text: str, signature: Signature) -> Rule:
    width = len(declared.features)
    fits = len(signature.inputs) == 1 and signature.inputs[0].shape[1:] == (width,)
    numbers = [each for each in signature.outputs if each.shape[1:] in ((), (1,))]
    if not fits or not numbers or DATATYPES[numbers[0].datatype].dtype.kind != "f":
        raise InvalidArgument("RULE_INVALID", "the rule needs one input of its features, one score")
    return Rule(
        expressions.read(text), tuple(declared.features), numbers[0].name, numbers[0].datatype
    )


def _is_to_be_kept(request: InferRequest, reply: InferReply) -> bool:
    """Say whether others may be answered so: not with a shadow's reply, nor with a large one."""
    size = sum(_size_of(each) for each in (*request.inputs, *reply.outputs))
    return not request.origin.is_shadow and size <= MAX_KEPT_BYTES


def _size_of(tensor: Tensor) -> int:
    if tensor.array.dtype.kind == "O":
        return sum(len(each) for each in tensor.array.ravel())
    return tensor.array.nbytes


def _key_of(request: InferRequest) -> Hashable:
    """Return what makes two requests ask the same: the entity, else the input's bytes."""
    if request.about.entity_keys:
        return (request.outputs, *sorted(request.about.entity_keys.items()))
    return (
        request.outputs,
        *((each.name, each.shape, each.array.tobytes()) for each in request.inputs),
    )
