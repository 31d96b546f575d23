"""The call being answered: who asks, for which project, until when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from volary_kit.clock import Clock, SystemClock
from volary_kit.policies import Policy

DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: `principals/<id>`, `services/<name>`, or nobody.

    `on_behalf_of` is the principal that began the chain of calls, when a service calls.
    """

    subject: str
    project: str = DEFAULT_PROJECT
    roles: frozenset[str] = frozenset()
    on_behalf_of: str | None = None
    key_id: str = ""


ANONYMOUS = Principal(subject="anonymous")


@dataclass(slots=True)
class Call:
    """One RPC in progress; the rules fill it before the handler sees it.

    `deadline_s` is on `clock.monotonic_s()`, infinite for an unbounded stream;
    `client_deadline_s` is what the caller set, None when it set none. `entered` counts the
    rules that saw it, `refusal` is why a message of its request stream was not taken.
    """

    method: str
    policy: Policy
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    client_deadline_s: float | None = None
    deadline_s: float = math.inf
    started_s: float = 0.0
    principal: Principal = ANONYMOUS
    request_key: str = ""
    trace_id: str = ""
    clock: Clock = field(default_factory=SystemClock)
    span: Any = None
    entered: int = 0
    refusal: Exception | None = None

    @property
    def project(self) -> str:
        """The project of the credential: the unit of isolation."""
        return self.principal.project

    def remaining_s(self) -> float:
        """Return the seconds left, never negative, infinite for an unbounded stream."""
        return max(0.0, self.deadline_s - self.clock.monotonic_s())

    def text(self, key: str) -> str:
        """Return one metadata value as text, empty when absent or binary."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


_current: ContextVar[Call | None] = ContextVar("volary_call", default=None)


def current_call() -> Call:
    """Return the call being answered; raise LookupError outside of one."""
    call = _current.get()
    if call is None:
        raise LookupError("no call is being answered here; background work uses act_for()")
    return call


def find_call() -> Call | None:
    """Return the call being answered, None outside of one."""
    return _current.get()


@contextmanager
def entered(call: Call) -> Iterator[Call]:
    """Make `call` the current one."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


def enter(call: Call) -> None:
    """Make `call` the current one for the rest of this task or thread context."""
    _current.set(call)


_BACKGROUND = Policy(
    method="background",
    allow=frozenset(),
    default_deadline_s=0,
    max_deadline_s=0,
    unbounded=True,
    idempotency="natural",
    max_request_bytes=0,
    client_streaming=False,
    server_streaming=False,
)


@contextmanager
def act_for(
    project: str,
    on_behalf_of: str | None = None,
    request_key: str = "",
    deadline_s: float = math.inf,
) -> Iterator[Call]:
    """Do background work for a project: calls that leave inside carry it and its principal."""
    principal = Principal("services/self", project, frozenset({"service"}), on_behalf_of)
    call = Call(
        _BACKGROUND.method,
        _BACKGROUND,
        deadline_s=deadline_s,
        principal=principal,
        request_key=request_key,
    )
    with entered(call):
        yield call
