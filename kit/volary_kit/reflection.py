"""`grpc.reflection.v1` from the descriptors in this process.

grpcio-reflection carries v1alpha alone; the messages of v1 are the same on the wire under
another package, so the v1 descriptors are made from those.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2

from volary_kit.registration import Servicer

OLD, NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"
SERVICE = f"{NEW}.ServerReflection"
METHOD = "ServerReflectionInfo"
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]


def _v1_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.package, file.name = NEW, "grpc/reflection/v1/reflection.proto"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(OLD, NEW)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(OLD, NEW)
        method.output_type = method.output_type.replace(OLD, NEW)
    return file


def _v1_messages() -> tuple[type[Message], type[Message]]:
    pool: Any = descriptor_pool.Default()
    try:
        method = pool.FindMethodByName(f"{SERVICE}.{METHOD}")
    except KeyError:
        pool.AddSerializedFile(_v1_file().SerializeToString())
        method = pool.FindMethodByName(f"{SERVICE}.{METHOD}")
    return (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )


REQUEST, REPLY = _v1_messages()


class Reflection:
    """Answer one question about the descriptors at a time."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted(set(services))
        self._pool: Any = descriptor_pool.Default()

    def answer(self, request: Any) -> Message:
        """Return the reply to one request of `ServerReflectionInfo`."""
        reply: Any = REPLY(valid_host=request.host)
        reply.original_request.CopyFrom(request)
        which = request.WhichOneof("message_request") or ""
        find = self._finders().get(which)
        if which == "list_services":
            for name in self._services:
                reply.list_services_response.service.add(name=name)
            return reply
        try:
            if find is None:
                raise KeyError(which)
            find(reply, request)
        except KeyError:
            reply.ClearField("message_response")
            reply.error_response.error_code = NOT_FOUND
            reply.error_response.error_message = "not found"
        return reply

    def _finders(self) -> dict[str, Callable[[Any, Any], None]]:
        return {
            "file_by_filename": lambda reply, asked: self._put_files(
                reply, self._pool.FindFileByName(asked.file_by_filename)
            ),
            "file_containing_symbol": lambda reply, asked: self._put_files(
                reply, self._pool.FindFileContainingSymbol(asked.file_containing_symbol)
            ),
            "file_containing_extension": lambda reply, asked: self._put_files(
                reply, self._extension(asked.file_containing_extension).file
            ),
            "all_extension_numbers_of_type": self._put_extension_numbers,
        }

    def _extension(self, asked: Any) -> Any:
        containing = self._pool.FindMessageTypeByName(asked.containing_type)
        return self._pool.FindExtensionByNumber(containing, asked.extension_number)

    def _put_extension_numbers(self, reply: Any, asked: Any) -> None:
        name = asked.all_extension_numbers_of_type
        containing = self._pool.FindMessageTypeByName(name)
        found = self._pool.FindAllExtensions(containing)
        reply.all_extension_numbers_response.base_type_name = name
        reply.all_extension_numbers_response.extension_number.extend(e.number for e in found)

    def _put_files(self, reply: Any, file: Any) -> None:
        # with every import, so that a client needs one question and can build its own pool
        pending, seen = [file], {}
        while pending:
            current = pending.pop()
            if current.name not in seen:
                seen[current.name] = current.serialized_pb
                pending.extend(current.dependencies)
        reply.file_descriptor_response.file_descriptor_proto.extend(seen.values())


class AioReflectionHandler:
    """Reflection on grpc.aio."""

    def __init__(self, reflection: Reflection) -> None:
        self._reflection = reflection

    async def ServerReflectionInfo(
        self,
        requests: AsyncIterator[Any],
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[Message]:
        async for request in requests:
            yield self._reflection.answer(request)


class SyncReflectionHandler:
    """Reflection on a thread-pool server."""

    def __init__(self, reflection: Reflection) -> None:
        self._reflection = reflection

    def ServerReflectionInfo(
        self,
        requests: Iterator[Any],
        context: Any,  # noqa: ARG002
    ) -> Iterator[Message]:
        for request in requests:
            yield self._reflection.answer(request)


def reflection_servicer(services: Iterable[str], *, is_aio: bool) -> Servicer:
    """Return the reflection service of one server, itself included in its list."""
    reflection = Reflection([*services, SERVICE])
    handler = AioReflectionHandler(reflection) if is_aio else SyncReflectionHandler(reflection)
    return Servicer(_add_to_server, handler, SERVICE)


def _add_to_server(handler: Any, server: Any) -> None:
    behaviour = grpc.stream_stream_rpc_method_handler(
        handler.ServerReflectionInfo,
        request_deserializer=REQUEST.FromString,
        response_serializer=REPLY.SerializeToString,
    )
    server.add_registered_method_handlers(SERVICE, {METHOD: behaviour})
