"""Cumulative counts of what each version did: never rates, never windows."""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from volary_gateway.domain.names import ModelName

# 100 us to 63 s in tenths of a decade (a step of 26 %); frozen: counts of all times add up
LATENCY_EDGES_US: tuple[int, ...] = tuple(round(100 * 10 ** (k / 10)) for k in range(59))
NO_STATUS = -1  # the attempt ended without a gRPC status: reset, connection refused
MODEL_TIER = "model"
USER_BYTES = 16
OK, CANCELLED, INVALID_ARGUMENT, DEADLINE, NOT_FOUND = 0, 1, 3, 4, 5
PERMISSION_DENIED, UNAUTHENTICATED = 7, 16
# of the caller's making, whichever version it meets: callers who ask for nonsense must not end a
# rollout. What a version makes of good input (INTERNAL, OUT_OF_RANGE, FAILED_PRECONDITION,
# RESOURCE_EXHAUSTED, UNAVAILABLE, DEADLINE_EXCEEDED, ...) counts against it
CALLERS_OWN = frozenset(
    {CANCELLED, INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNAUTHENTICATED}
)


@dataclass(frozen=True, order=True, slots=True)
class Variant:
    """One version in one step."""

    project: str
    model: str
    rollout: str
    step: str
    generation: int
    version: int
    is_shadow: bool

    @property
    def of(self) -> ModelName:
        """The model."""
        return ModelName(self.project, self.model)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of Envoy at a replica, or one call that found nobody to try."""

    variant: Variant
    code: int
    tier: str
    latency_us: int | None
    ended_us: int
    user: str = ""
    number: int = 1  # of its call; a retry is not independent of what it repeats
    has_met: bool = True  # a replica: what no process took says nothing of the version

    @property
    def is_first(self) -> bool:
        """Whether it is an event of its own, which tests may use."""
        return self.number <= 1 and self.has_met


@dataclass(slots=True)
class Counts:
    """Counts since they were last taken, ready to be added to what is stored."""

    outcomes: Counter[tuple[Variant, int, str]] = field(default_factory=Counter)
    firsts: Counter[tuple[Variant, int, str]] = field(default_factory=Counter)
    latencies: Counter[tuple[Variant, int]] = field(default_factory=Counter)
    users: dict[tuple[Variant, bytes], bool] = field(default_factory=dict)
    times: dict[Variant, tuple[int, int]] = field(default_factory=dict)
    records: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.records)

    def add(self, attempt: Attempt) -> None:
        """Count one attempt: every one by its outcome, first ones also by latency and user."""
        variant = attempt.variant
        self.outcomes[variant, attempt.code, attempt.tier] += 1
        first, last = self.times.get(variant, (attempt.ended_us, attempt.ended_us))
        self.times[variant] = (min(first, attempt.ended_us), max(last, attempt.ended_us))
        if attempt.is_first:
            self._add_first(attempt)

    def _add_first(self, attempt: Attempt) -> None:
        variant = attempt.variant
        self.firsts[variant, attempt.code, attempt.tier] += 1
        if attempt.latency_us is not None:
            self.latencies[variant, bucket(attempt.latency_us)] += 1
        if attempt.user:
            key = (variant, user_hash(variant.of, attempt.user))
            error = is_error_event(attempt.code, attempt.tier)
            self.users[key] = self.users.get(key, False) or error


def is_error_event(code: int, tier: str) -> bool:
    """Say whether an outcome counts against the version: its failure, or an answer by no model."""
    return tier not in ("", MODEL_TIER) if code == OK else code not in CALLERS_OWN


def bucket(latency_us: int) -> int:
    """Return the index of the first edge that is not below a latency; one more is above all."""
    return bisect.bisect_left(LATENCY_EDGES_US, latency_us)


def user_hash(model: ModelName, key: str) -> bytes:
    """Return what stands for a sticky key: the key itself is not kept."""
    salted = f"{model.scope}\0{key}".encode()
    return hashlib.blake2b(salted, digest_size=USER_BYTES).digest()


def latency_counts(rows: Iterable[tuple[int, int]]) -> list[int]:
    """Return one count an edge and one more for what is above the last."""
    counts = [0] * (len(LATENCY_EDGES_US) + 1)
    for index, count in rows:
        counts[index] += count
    return counts
