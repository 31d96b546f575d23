"""Which RPCs a servicer answers: its generated `add_..._to_server` tells, its descriptors type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from volary_kit.errors import Unimplemented
from volary_kit.policies import Policy, policies

GENERATED = "_pb2_grpc"


@dataclass(frozen=True)
class Servicer:
    """A handler object, the generated function that registers it, and its full service name."""

    add: Callable[[Any, Any], None]
    handler: Any
    service: str


@dataclass(frozen=True)
class Method:
    """One RPC of one servicer, bound to its policy row and its message types."""

    name: str
    policy: Policy
    behaviour: Callable[..., Any]
    request_type: type[Message]
    reply_type: type[Message]
    is_implemented: bool

    def require_implemented(self) -> None:
        """Raise Unimplemented when the servicer leaves this RPC to its generated base."""
        if not self.is_implemented:
            raise unimplemented(self.name)


class ContractError(Exception):
    """What is registered and what the contract says do not fit; the process must not start."""


def unimplemented(method: str) -> Unimplemented:
    """Return the error of an RPC that the contract has and this build does not."""
    return Unimplemented(
        "METHOD_NOT_IMPLEMENTED",
        f"{method} is part of the contract and not implemented yet; docs/status.md lists these",
        {"method": method},
    )


def methods_of(
    servicers: Iterable[Servicer], rows: Mapping[str, Policy] | None = None
) -> list[Method]:
    """Return every RPC of the servicers; raise ContractError for one without a policy row."""
    rows = policies() if rows is None else rows
    found = [method for servicer in servicers for method in _recorded(servicer)]
    problems = [text for name, *_ in found for text in _problems(name, rows)]
    if problems:
        raise ContractError("; ".join(problems))
    return [_bound(name, servicer, handler, rows[name]) for name, servicer, handler in found]


def _problems(name: str, rows: Mapping[str, Policy]) -> list[str]:
    row = rows.get(name)
    if row is None:
        return [f"{name} has no policy row: give its rpc a (volary.policy.v1.method)"]
    problems = []
    if not row.allow:
        problems.append(f"the policy row of {name} allows nobody")
    if row.idempotency == "unspecified":
        problems.append(f"the policy row of {name} states no idempotency")
    if not row.unbounded and not 0 < row.default_deadline_s <= row.max_deadline_s:
        problems.append(f"the policy row of {name} has no deadlines, default <= maximum")
    return problems


def _recorded(servicer: Servicer) -> list[tuple[str, Servicer, Any]]:
    recorder = _Recorder()
    servicer.add(servicer.handler, recorder)
    if set(recorder.services) != {servicer.service}:
        registered = ", ".join(recorder.services) or "nothing"
        raise ContractError(f"{servicer.service} was announced, {registered} was registered")
    handlers = recorder.services[servicer.service]
    return [
        (f"/{servicer.service}/{name}", servicer, handler) for name, handler in handlers.items()
    ]


def _behaviour(handler: Any) -> Callable[..., Any]:
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def _bound(name: str, servicer: Servicer, handler: Any, row: Policy) -> Method:
    method = name.rpartition("/")[2]
    request_type, reply_type = _types(name, handler)
    return Method(
        name=name,
        policy=row,
        behaviour=_behaviour(handler),
        request_type=request_type,
        reply_type=reply_type,
        is_implemented=is_implemented(servicer.handler, method),
    )


def _types(name: str, handler: Any) -> tuple[type[Message], type[Message]]:
    """Return the message types of an RPC by its descriptor, else as its handler parses them."""
    try:
        found = descriptor_pool.Default().FindMethodByName(name[1:].replace("/", "."))
    except KeyError:
        # registered by name: messages of our own under the RPC of another's contract
        return handler.request_deserializer.__self__, Message
    message_class = message_factory.GetMessageClass
    return message_class(found.input_type), message_class(found.output_type)


def is_implemented(handler: object, method: str) -> bool:
    """Say whether a handler has its own method rather than the generated base's."""
    function = getattr(type(handler), method, None)
    return function is None or not function.__module__.endswith(GENERATED)


class _Recorder:
    """Stands where the generated code expects a server, and keeps what it registers."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = {}

    def add_generic_rpc_handlers(self, _handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Ignore: the same handlers come by name in the next call."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Keep the handlers of one service by method name."""
        self.services[service] = handlers
