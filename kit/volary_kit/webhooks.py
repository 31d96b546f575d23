"""Web hooks: post to addresses that the operator has allowed, and to no other.

What a plan or a policy names is data from outside, so a hook is only called when its origin stands
in the caller's allow-list. A name is resolved once and that very address is connected to, so that
it cannot be rebound in between; an address that is not public is refused unless the allow-list
names the address itself. Redirects are answers like any other: they are not followed.

A hook may be told the same thing twice, under the same `idempotency-key`. With a secret, the
header `volary-signature` is `t=<seconds>,v1=<hex>`, HMAC-SHA256 of `<seconds>.<body>`, which
`is_signed` checks.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from volary_kit.clock import Clock, SystemClock
from volary_kit.errors import FailedPrecondition, Unavailable

TIMEOUT_S = 5.0
SIGNATURE = "volary-signature"
TOLERATED_S = 300.0  # an older signature is a replay
US_PER_S = 1_000_000
FORM = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})")
PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], str]


def resolved(host: str, port: int) -> str:
    """Return the first address of a host; raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


class Webhooks:
    """The allow-list of origins, such as `https://hooks.example.com`, and the way to call them."""

    def __init__(
        self,
        origins: Iterable[str],
        secret: str = "",
        *,
        resolve: Resolve = resolved,
        clock: Clock | None = None,
    ) -> None:
        self._origins = {_origin(urlsplit(origin)) for origin in origins}
        self._secret = secret.encode()
        self._resolve = resolve
        self._clock = clock or SystemClock()

    def allows(self, url: str) -> bool:
        """Say whether a hook may be called."""
        try:
            return _origin(urlsplit(url)) in self._origins
        except ValueError:
            return False

    async def post(self, url: str, told: Mapping[str, Any], key: str) -> None:
        """Tell one hook; Unavailable when it does not take it, FailedPrecondition when barred.

        `key` is the same on every attempt.
        """
        if not self.allows(url):
            raise FailedPrecondition("WEBHOOK_NOT_ALLOWED", "the origin is not in the allow-list")
        body = json.dumps(told).encode()
        headers = {"content-type": "application/json", "idempotency-key": key}
        if self._secret:
            now_s = self._clock.now_us() // US_PER_S
            headers[SIGNATURE] = f"t={now_s},v1={_mac(self._secret, now_s, body)}"
        await asyncio.to_thread(self._post, urlsplit(url), body, headers)

    def _post(self, url: SplitResult, body: bytes, headers: dict[str, str]) -> None:
        try:
            status = self._send(url, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable("WEBHOOK_UNREACHABLE", "the web hook did not answer") from error
        if status >= 300:
            raise Unavailable("WEBHOOK_REFUSED", f"the web hook answered {status}")

    def _send(self, url: SplitResult, body: bytes, headers: dict[str, str]) -> int:
        host, port = url.hostname or "", url.port or PORTS[url.scheme]
        connection = _connection(url.scheme, host, port, self._address(host, port))
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, body, headers)
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


def is_signed(secret: str, signature: str, body: bytes, now_s: float) -> bool:
    """Say whether a signature is of this body, by this secret, and fresh: what a receiver asks."""
    found = FORM.fullmatch(signature)
    if found is None or abs(now_s - int(found[1])) > TOLERATED_S:
        return False
    return hmac.compare_digest(found[2], _mac(secret.encode(), int(found[1]), body))


def _mac(secret: bytes, at_s: int, body: bytes) -> str:
    return hmac.new(secret, b"%d." % at_s + body, hashlib.sha256).hexdigest()
