"""Web hooks: post a change of state to addresses that the operator has allowed, and to no other.

What a plan names is data from outside, so a hook is only called when its origin stands in the
worker's allow-list. A name is resolved once and that very address is connected to, so that it
cannot be rebound in between; an address that is not public is refused unless the allow-list
names the address itself. Redirects are answers like any other: they are not followed.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import asdict
from urllib.parse import SplitResult, urlsplit

from volary_kit.errors import FailedPrecondition, Unavailable

from volary_workflows.rollout.tasks import Notice

TIMEOUT_S = 5.0
PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], str]


def resolved(host: str, port: int) -> str:
    """Return the first address of a host; raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


class Webhooks:
    """The allow-list of origins, such as `https://hooks.example.com`, and the way to call them."""

    def __init__(self, origins: Iterable[str], resolve: Resolve = resolved) -> None:
        self._origins = {_origin(urlsplit(origin)) for origin in origins}
        self._resolve = resolve

    def allows(self, url: str) -> bool:
        """Say whether a hook may be called."""
        try:
            return _origin(urlsplit(url)) in self._origins
        except ValueError:
            return False

    async def post(self, notice: Notice) -> None:
        """Tell one hook; Unavailable when it does not take it, FailedPrecondition when barred."""
        if not self.allows(notice.url):
            raise FailedPrecondition("WEBHOOK_NOT_ALLOWED", "the origin is not in the allow-list")
        await asyncio.to_thread(self._post, urlsplit(notice.url), notice)

    def _post(self, url: SplitResult, notice: Notice) -> None:
        try:
            status = self._send(url, notice)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable("WEBHOOK_UNREACHABLE", "the web hook did not answer") from error
        if status >= 300:
            raise Unavailable("WEBHOOK_REFUSED", f"the web hook answered {status}")

    def _send(self, url: SplitResult, notice: Notice) -> int:
        host, port = url.hostname or "", url.port or PORTS[url.scheme]
        connection = _connection(url.scheme, host, port, self._address(host, port))
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, _body(notice), _headers(notice))
            return connection.getresponse().status
        finally:
            connection.close()

    def _address(self, host: str, port: int) -> str:
        address = self._resolve(host, port)
        if address != host and not ipaddress.ip_address(address).is_global:
            raise FailedPrecondition("WEBHOOK_NOT_PUBLIC", "its name leads to a private address")
        return address


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError("an origin is a scheme, a host and a port")
    return parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme]


def _connection(scheme: str, host: str, port: int, address: str) -> http.client.HTTPConnection:
    """Return a connection to the address that still speaks, and checks, as the host."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    plain = socket.create_connection((address, port), timeout=TIMEOUT_S)
    if scheme == "http":
        connection.sock = plain
    else:
        context = ssl.create_default_context()
        connection.sock = context.wrap_socket(plain, server_hostname=host)
    return connection


def _body(notice: Notice) -> bytes:
    told = asdict(notice)
    del told["url"]
    return json.dumps(told).encode()


def _headers(notice: Notice) -> dict[str, str]:
    return {"content-type": "application/json", "idempotency-key": notice.id}
