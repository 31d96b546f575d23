"""Channels to the other services, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from volary_kit.outgoing.aio import AioChannel
from volary_kit.outgoing.dress import AbsentPeer, Dress
from volary_kit.outgoing.sync import SyncChannel

NOWHERE = "unconfigured.invalid:1"
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_retries", 0),  # retries belong to Envoy, Temporal and the public client
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # a peer that restarts is back within 2 s; gRPC's own 1 s to 120 s would miss that
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class Channels:
    """One channel per peer and kind, made when first asked for."""

    def __init__(
        self,
        service: str,
        addresses: Mapping[str, str | None],
        dress: Dress,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._service = service
        self._addresses = dict(addresses)
        self._dress = dress
        self._credentials = credentials
        self._aio: dict[str, AioChannel] = {}
        self._sync: dict[str, SyncChannel] = {}

    def to(self, peer: str) -> grpc.aio.Channel:
        """Return the asyncio channel to a peer; without an address its calls are UNAVAILABLE."""
        if peer not in self._aio:
            address, dress = self._route(peer)
            self._aio[peer] = AioChannel(aio_channel(address, self._credentials), dress)
        return self._aio[peer]

    def at(self, address: str) -> grpc.aio.Channel:
        """Return a channel to one process that a peer has named, such as a replica."""
        if address not in self._aio:
            self._aio[address] = AioChannel(aio_channel(address, self._credentials), self._dress)
        return self._aio[address]

    def to_sync(self, peer: str) -> grpc.Channel:
        """Return the blocking channel to a peer, for threads."""
        if peer not in self._sync:
            address, dress = self._route(peer)
            self._sync[peer] = SyncChannel(sync_channel(address, self._credentials), dress)
        return self._sync[peer]

    def is_configured(self, peer: str) -> bool:
        """Say whether the peer has an address."""
        return bool(self._addresses.get(peer))

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._aio.values():
            await channel.close()
        for blocking in self._sync.values():
            blocking.close()

    def _route(self, peer: str) -> tuple[str, Dress]:
        address = self._addresses.get(peer)
        if address:
            return address, self._dress
        setting = f"VOLARY_{self._service.upper()}_{peer.upper()}_ADDRESS"
        return NOWHERE, AbsentPeer(peer, setting)


def aio_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """Open a bare asyncio channel with the mesh's options."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS)


def sync_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Open a bare blocking channel with the mesh's options."""
    if credentials is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, credentials, options=OPTIONS)
