"""The data port in native hands, with the Python server behind it on a socket of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from grpc_health.v1.health_pb2 import HealthCheckResponse
from volary_kit.health import Health
from volary_kit.server import Address, ListenError, SocketFile, SyncServer

from volary_inference.native.module import DataPlane, Unavailable

SOCKET = "python"
MAX_SOCKET = 107  # bytes of a path, by the system


class SocketFolder:
    """A folder that this user alone may enter; raise Unavailable where its path is too long."""

    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="volary-"))
        if len(bytes(self.socket)) > MAX_SOCKET:
            self.remove()
            raise Unavailable(f"{self._path.parent} is too long for a socket: set TMPDIR")

    @property
    def socket(self) -> Path:
        """Where the Python server listens."""
        return self._path / SOCKET

    def remove(self) -> None:
        """Remove it with what is in it."""
        shutil.rmtree(self._path, ignore_errors=True)

    @property
    def address(self) -> Address:
        """The socket as an address."""
        return SocketFile(str(self.socket), 0)


class NativeListener:
    """Starts and stops the plane and the server behind it as one listener."""

    def __init__(
        self, plane: DataPlane, behind: SyncServer, health: Health, address: Address
    ) -> None:
        address.require_safe()
        self.address = address
        self._plane = plane
        self._behind = behind
        self._health = health
        self._stack = ExitStack()

    async def start(self) -> None:
        """Bind and begin to take calls; `address.port` is the real one afterwards."""
        await self._behind.start()
        self._stack.enter_context(self._health.watched(self._tell))
        self._tell()
        try:
            port = self._plane.start(self.address.host, self.address.port)
        except OSError as error:
            text = f"cannot listen on {self.address}: the port is taken"
            raise ListenError(text) from error
        self.address = replace(self.address, port=port)

    async def stop(self, grace_s: float) -> None:
        """Send GOAWAY, let calls in flight finish, those behind too."""
        await asyncio.gather(
            asyncio.to_thread(self._plane.stop, grace_s), self._behind.stop(grace_s)
        )
        self._stack.close()

    def _tell(self) -> None:
        serving = HealthCheckResponse.SERVING
        statuses = self._health.statuses().items()
        self._plane.set_health({name: status == serving for name, status in statuses})
