"""The gRPC calls that REST calls become: same caller, same trace, the method's own deadline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import grpc
from google.protobuf.message import Message
from inference import grpc_service_pb2_grpc as rpc
from volary_kit.channels import aio_channel
from volary_kit.errors import InvalidArgument
from volary_kit.policies import policies
from volary_kit.statuses import error_of_rpc

SERVICE = "/inference.GRPCInferenceService/"
# of one connection, of the body as HTTP has it, or Envoy's and the mesh's own to set
DROPPED = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-encoding", "content-length",
        "content-type", "expect", "host", "inference-header-content-length", "keep-alive", "te",
        "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "x-request-id",
    }
)  # fmt: skip
DROPPED_PREFIXES = ("volary-", "grpc-", "x-envoy-", "x-forwarded-", "proxy-", ":")
KEY = re.compile(r"[0-9a-z_.-]{1,128}")
VALUE = re.compile(r"[\x20-\x7e]*")
MAX_HEADERS = 64


def metadata_of(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the headers that travel on: credential, trace context, sticky key.

    None of the mesh's own is among them, so that nobody forges a route. What gRPC cannot carry is
    left out, of a repeated header all but the first; raise InvalidArgument when there are too many.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        if key in DROPPED or key.startswith(DROPPED_PREFIXES) or key.endswith("-bin"):
            continue
        if KEY.fullmatch(key) and VALUE.fullmatch(value):
            found.setdefault(key, value)
    if len(found) > MAX_HEADERS:
        raise InvalidArgument("HEADERS_TOO_MANY", f"a call has at most {MAX_HEADERS} headers")
    return tuple(found.items())


class Upstream:
    """Calls one gRPC address by method name; it is asked for with the first call."""

    def __init__(
        self, address: Callable[[], str], credentials: grpc.ChannelCredentials | None
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None

    @cached_property
    def _stub(self) -> Any:
        self._channel = aio_channel(self._address(), self._credentials)
        return rpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    async def call(
        self,
        method: str,
        request: Message,
        headers: Iterable[tuple[str, str]],
        timeout_s: float | None = None,
    ) -> Any:
        """Return the reply; raise the VolaryError that the server answered with.

        `timeout_s` is cut to the method's longest, and is its default where none is given.
        """
        row = policies()[SERVICE + method]
        left_s = row.default_deadline_s if timeout_s is None else timeout_s
        try:
            return await getattr(self._stub, method)(
                request,
                timeout=min(left_s, row.max_deadline_s),
                metadata=metadata_of(headers),
            )
        except grpc.RpcError as failure:
            raise error_of_rpc(failure) from failure
