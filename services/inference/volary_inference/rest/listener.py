"""The HTTP server as one of the kit's listeners."""

from __future__ import annotations

import ssl
from dataclasses import replace

from aiohttp import web
from volary_kit.server import Address, Certificate, ListenError

KEEPALIVE_S = 75.0


class RestListener:
    """Takes HTTP calls; drained as every listener is."""

    def __init__(self, app: web.Application, address: Address, grace_s: float) -> None:
        address.require_safe()
        self.address = address
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            handler_cancellation=True,  # a caller that went away cancels its gRPC call
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=grace_s,
        )

    async def start(self) -> None:
        """Bind and begin to take calls; `address.port` is the real one afterwards."""
        await self._runner.setup()
        certificate = self.address.certificate
        site = web.TCPSite(
            self._runner,
            self.address.host,
            self.address.port,
            ssl_context=None if certificate is None else _tls(certificate),
            reuse_address=True,
        )
        try:
            await site.start()
        except OSError as error:
            raise ListenError(f"cannot listen on {self.address}: the port is taken") from error
        self.address = replace(self.address, port=self._runner.addresses[0][1])

    async def stop(self, grace_s: float) -> None:  # noqa: ARG002 - aiohttp is told at its start
        """Take no new call and let those in flight finish."""
        await self._runner.cleanup()


def _tls(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain_file, certificate.key_file)
    if certificate.client_ca_file is not None:
        context.load_verify_locations(certificate.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
