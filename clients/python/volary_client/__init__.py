"""Typed clients of every Volary service.

`AsyncClient` for asyncio, `Client` for everybody else; both raise the errors of
`volary_kit.errors`, retry with one request id, and give tables as Arrow.
"""

from __future__ import annotations

from volary_client.aio import AsyncClient
from volary_client.blocking import Client
from volary_client.operations import Progress
from volary_client.values import record_of, value_of

__all__ = ["AsyncClient", "Client", "Progress", "record_of", "value_of"]
