"""What a running server says that it serves: its descriptors, through reflection alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from volary_kit.errors import VolaryError
from volary_kit.policies import Policy, policies
from volary_kit.reflection import METHOD, REPLY, REQUEST, SERVICE

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Rpc:
    """One RPC of a running server, with its row of the contract."""

    name: str
    request_type: type[Message]
    policy: Policy
    client_streaming: bool
    server_streaming: bool


def ask(channel: grpc.Channel, **question: Any) -> Any:
    """Ask the reflection service one question."""
    call: Any = channel.stream_stream(
        f"/{SERVICE}/{METHOD}",
        request_serializer=REQUEST.SerializeToString,
        response_deserializer=REPLY.FromString,
    )
    replies = call(iter([REQUEST(**question)]), timeout=TIMEOUT_S)
    [reply] = list(replies)
    return reply


def services(channel: grpc.Channel) -> list[str]:
    """Return the full names of the services."""
    reply = ask(channel, list_services="")
    return [service.name for service in reply.list_services_response.service]


def rpcs(channel: grpc.Channel) -> list[Rpc]:
    """Return every RPC; one without a policy row is a KeyError, which is the point."""
    pool: Any = descriptor_pool.DescriptorPool()
    found: list[Rpc] = []
    for service in services(channel):
        reply = ask(channel, file_containing_symbol=service)
        for data in _in_order(reply.file_descriptor_response.file_descriptor_proto, pool):
            pool.AddSerializedFile(data)
        for method in pool.FindServiceByName(service).methods:
            name = f"/{service}/{method.name}"
            found.append(
                Rpc(
                    name=name,
                    request_type=message_factory.GetMessageClass(method.input_type),
                    policy=policies()[name],
                    client_streaming=method.client_streaming,
                    server_streaming=method.server_streaming,
                )
            )
    return found


def _in_order(files: Any, pool: Any) -> Iterator[bytes]:
    """Yield serialized files that the pool lacks, imports before importers."""
    parsed = {}
    for data in files:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        parsed[file.name] = (file, data)
    done: set[str] = set()

    def visit(name: str) -> Iterator[bytes]:
        if name in done or name not in parsed:
            return
        done.add(name)
        file, data = parsed[name]
        for dependency in file.dependency:
            yield from visit(dependency)
        if not _has(pool, name):
            yield data

    for name in parsed:
        yield from visit(name)


def _has(pool: Any, name: str) -> bool:
    try:
        pool.FindFileByName(name)
    except KeyError:
        return False
    return True


def call(channel: grpc.Channel, rpc: Rpc, data: bytes, timeout_s: float) -> VolaryError | None:
    """Send raw bytes as the only request; return the error, None when the call was answered.

    A stream of replies is read to its end, for as long as it has time.
    """
    shape = {
        (False, False): channel.unary_unary,
        (True, False): channel.stream_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }[rpc.client_streaming, rpc.server_streaming]
    start: Any = shape(rpc.name, request_serializer=None, response_deserializer=None)
    request: Any = iter([data]) if rpc.client_streaming else data
    try:
        reply = start(request, timeout=timeout_s)
        if rpc.server_streaming:
            deque(reply, maxlen=0)
    except VolaryError as error:
        return error
    return None
