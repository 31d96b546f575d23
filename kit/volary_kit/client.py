"""Channels of a public client: an API key, deadlines, retries, the error tree."""

from __future__ import annotations

import grpc

from volary_kit.channels import aio_channel, sync_channel
from volary_kit.outgoing import EdgeDress, Retry
from volary_kit.outgoing.aio import AioChannel
from volary_kit.outgoing.sync import SyncChannel
from volary_kit.rules.tracing import ClientTracer

DEFAULT_RETRY = Retry()


def connect(
    address: str,
    credential: str | None = None,
    *,
    timeout_s: float | None = None,
    retry: Retry = DEFAULT_RETRY,
    tls: grpc.ChannelCredentials | None = None,
    tracer: ClientTracer | None = None,
) -> grpc.Channel:
    """Open a blocking channel; its calls raise `volary_kit.errors`.

    `credential` is an API key; `timeout_s` bounds every call that states none, else the
    method's own default does. Unary calls are retried with one request id, streams never.
    """
    dress = EdgeDress(credential, timeout_s, tracer)
    return SyncChannel(sync_channel(address, tls), dress, retry)


def connect_aio(
    address: str,
    credential: str | None = None,
    *,
    timeout_s: float | None = None,
    retry: Retry = DEFAULT_RETRY,
    tls: grpc.ChannelCredentials | None = None,
    tracer: ClientTracer | None = None,
) -> grpc.aio.Channel:
    """Open an asyncio channel; otherwise as `connect`."""
    dress = EdgeDress(credential, timeout_s, tracer)
    return AioChannel(aio_channel(address, tls), dress, retry)
