"""Whether an HTTP server on this machine answers."""

from __future__ import annotations

import asyncio

from volary_cli.launcher.loopback import LOOPBACK

PROBE_S = 1.0


class HttpProbe:
    """Ask a path of a server on this machine; ready means that it answers 200."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path

    async def __call__(self) -> bool:
        """Return whether it does."""
        try:
            async with asyncio.timeout(PROBE_S):
                return b" 200 " in await self._first_line()
        except (OSError, TimeoutError):
            return False

    async def _first_line(self) -> bytes:
        reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
        head = f"GET {self._path} HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n"
        try:
            writer.write(head.encode())
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()
