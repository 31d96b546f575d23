"""What every outgoing call carries: its deadline, its credential, its trace context."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import Message

from volary_kit.calls import DEFAULT_PROJECT, Call, find_call
from volary_kit.errors import DeadlineExceeded, Unavailable
from volary_kit.identity import TokenSource
from volary_kit.policies import Policy, policies
from volary_kit.rules.authentication import API_KEY_HEADER, BEARER_HEADER
from volary_kit.rules.idempotency import REQUEST_ID
from volary_kit.rules.tracing import ClientTracer, SpanHandle

# what one hop keeps for itself, so that the inner call ends before the outer one does
HOP_S = 0.005
REQUEST_KEY = "x-request-id"
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Dressed:
    """One outgoing call, ready to send; `timeout_s` None is an unbounded stream."""

    timeout_s: float | None
    metadata: Metadata
    span: SpanHandle | None = None

    def ended(self, code: str, error: BaseException | None = None) -> None:
        """End the span of the call, if it has one."""
        if self.span is not None:
            self.span.end(code, error)


class Dress(Protocol):
    """Put on a call what it must carry."""

    def __call__(
        self, method: str, timeout_s: float | None, metadata: Iterable[tuple[str, str | bytes]]
    ) -> Dressed:
        """Return the call with deadline, credential and trace context."""
        ...


@dataclass(frozen=True)
class MeshDress:
    """Calls between services: a service token with the original principal, a shrinking deadline."""

    tokens: TokenSource | None = None
    tracer: ClientTracer | None = None
    rows: Mapping[str, Policy] = field(default_factory=policies)

    def __call__(
        self, method: str, timeout_s: float | None, metadata: Iterable[tuple[str, str | bytes]]
    ) -> Dressed:
        call = find_call()
        timeout_s = shrunk(self.rows.get(method), call, timeout_s)
        headers = dict(metadata)
        if call is not None:
            headers.setdefault(REQUEST_KEY, call.request_key or str(uuid.uuid4()))
        if self.tokens is not None and not headers.keys() & {API_KEY_HEADER, BEARER_HEADER}:
            headers[BEARER_HEADER] = f"Bearer {self._token(self.tokens, call)}"
        return _traced(method, timeout_s, headers, self.tracer)

    def _token(self, tokens: TokenSource, call: Call | None) -> str:
        if call is None:
            return tokens.token(DEFAULT_PROJECT, None)
        caller = call.principal
        is_original = not caller.subject.startswith("services/") and call.principal.roles
        return tokens.token(caller.project, caller.subject if is_original else caller.on_behalf_of)


@dataclass(frozen=True)
class EdgeDress:
    """Calls of a public client: its API key and a deadline for every bounded call."""

    credential: str | None = None
    timeout_s: float | None = None
    tracer: ClientTracer | None = None
    rows: Mapping[str, Policy] = field(default_factory=policies)

    def __call__(
        self, method: str, timeout_s: float | None, metadata: Iterable[tuple[str, str | bytes]]
    ) -> Dressed:
        row = self.rows.get(method)
        is_bounded = row is None or not row.unbounded
        if timeout_s is None and is_bounded:
            timeout_s = self.timeout_s or shrunk(row, None, None)
        headers = dict(metadata)
        if self.credential is not None:
            headers.setdefault(API_KEY_HEADER, self.credential)
        return _traced(method, timeout_s, headers, self.tracer)


@dataclass(frozen=True)
class AbsentPeer:
    """Refuse every call to a peer whose address is not set."""

    peer: str
    setting: str

    def __call__(
        self,
        method: str,
        timeout_s: float | None,  # noqa: ARG002
        metadata: Iterable[tuple[str, str | bytes]],  # noqa: ARG002
    ) -> Dressed:
        raise Unavailable(
            "PEER_NOT_CONFIGURED",
            f"{method} needs {self.peer}: set {self.setting}",
            {"peer": self.peer},
        )


def shrunk(row: Policy | None, call: Call | None, timeout_s: float | None) -> float | None:
    """Return the seconds an outgoing call gets: never more than the caller has left, less one hop.

    Without an explicit time it is the method's default; an unbounded stream has none unless
    the call that it is made in has.
    """
    if timeout_s is None and row is not None and not row.unbounded:
        timeout_s = row.default_deadline_s
    left_s = math.inf if call is None else call.remaining_s() - HOP_S
    if left_s <= 0:
        raise DeadlineExceeded("DEADLINE_EXCEEDED", "no time is left for a further call")
    if math.isinf(left_s):
        return timeout_s
    return left_s if timeout_s is None else min(timeout_s, left_s)


def _traced(
    method: str,
    timeout_s: float | None,
    headers: dict[str, str | bytes],
    tracer: ClientTracer | None,
) -> Dressed:
    if tracer is None:
        return Dressed(timeout_s, tuple(headers.items()))
    span, context = tracer.client_span(method)
    return Dressed(timeout_s, tuple((headers | dict(context)).items()), span)


def with_request_id(row: Policy | None, request: Message) -> Message:
    """Return the request with an id of its own where its RPC remembers replies and it has none."""
    if row is None or row.idempotency != REQUEST_ID:
        return request
    if getattr(request, "request_id", None) != "":
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = str(uuid.uuid4())  # pyright: ignore[reportAttributeAccessIssue]
    return copy
