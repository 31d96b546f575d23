"""Composition of a translator: one listener before one gRPC address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import Counter
from volary_kit.resources import Resources, address_of, peer_credentials
from volary_kit.service import Service
from volary_kit.settings import ServiceSettings

from volary_inference.rest.application import Limits, application
from volary_inference.rest.listener import RestListener
from volary_inference.rest.settings import RestSettings
from volary_inference.rest.upstream import Upstream


@asynccontextmanager
async def build(kit: Resources[RestSettings]) -> AsyncIterator[Service]:
    """Put the process together."""
    settings = kit.settings
    limits = Limits(settings.max_body_bytes, settings.max_json_bytes)
    upstream_address = settings.upstream_address
    async with listening(kit, settings.port, lambda: upstream_address, limits) as listener:
        yield Service(listeners=[listener])


@asynccontextmanager
async def listening(
    kit: Resources[Any], port: int, upstream_address: Callable[[], str], limits: Limits
) -> AsyncIterator[RestListener]:
    """Make a listener whose calls go to an address, with the callers' own credentials."""
    settings: ServiceSettings = kit.settings
    labels = ["rpc", "status"]
    replies = Counter(
        "volary_rest_replies_total", "REST calls that were answered", labels, registry=kit.registry
    )
    upstream = Upstream(upstream_address, peer_credentials(kit.service, settings.peer_ca_file))
    app = application(upstream, limits, replies)
    try:
        yield RestListener(app, address_of(settings, port), settings.grace_s)
    finally:
        await upstream.close()
        kit.registry.unregister(replies)
