"""The Envoys that are connected and the snapshot that they shall have."""

# pyright: reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from prometheus_client import Counter, Gauge

from volary_gateway.xds.delta import DeltaStream, Rejection, Request, Response
from volary_gateway.xds.lints import check
from volary_gateway.xds.snapshot import EMPTY, Snapshot

log = logging.getLogger(__name__)
REJECTIONS_KEPT = 64
CONNECTED = Gauge("volary_gateway_envoys", "Envoys that are connected")
REJECTED = Counter("volary_gateway_rejections_total", "Pushes that an Envoy refused")


class Plane:
    """Hand each new snapshot to every Envoy and know which of them holds it."""

    def __init__(self) -> None:
        self._snapshot = EMPTY
        self._sound = ("", "")  # the versions of the last snapshot that was checked, and before it
        self._streams: dict[DeltaStream, asyncio.Event] = {}
        self._moved = asyncio.Event()
        self.rejections: deque[Rejection] = deque(maxlen=REJECTIONS_KEPT)

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that is served."""
        return self._snapshot

    @property
    def connected(self) -> int:
        """How many Envoys are connected."""
        return len(self._streams)

    def publish(self, snapshot: Snapshot) -> None:
        """Serve a snapshot from now on; raise Internal and keep the old one if it is unsound."""
        if snapshot.version == self._snapshot.version:
            return
        self.check(snapshot)
        self._snapshot = snapshot
        for wake in self._streams.values():
            wake.set()

    def check(self, snapshot: Snapshot) -> None:
        """Raise Internal unless a snapshot may follow the one that is served."""
        if self._sound != (snapshot.version, self._snapshot.version):
            check(snapshot, before=self._snapshot)
            self._sound = (snapshot.version, self._snapshot.version)

    def is_held(self, snapshot: Snapshot) -> bool:
        """Say whether every connected Envoy holds a snapshot, or one that came after it."""
        wanted = self._snapshot if self._snapshot.version != snapshot.version else snapshot
        return bool(self._streams) and all(stream.holds(wanted) for stream in self._streams)

    async def converge(self, snapshot: Snapshot, timeout_s: float) -> bool:
        """Wait until every connected Envoy holds a snapshot, or one that came after it.

        Returns False when one refused it, none is connected, or the time is over before.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_held(snapshot):
                    if any(stream.refuses(snapshot) for stream in self._streams):
                        return False
                    await self._moved.wait()
                return True
        return False

    async def serve(self, requests: AsyncIterator[Request]) -> AsyncIterator[Response]:
        """Answer one Envoy until it goes away."""
        stream, wake = DeltaStream(), asyncio.Event()
        self._streams[stream] = wake
        CONNECTED.set(len(self._streams))
        reading = asyncio.create_task(self._read(stream, requests, wake))
        try:
            while not reading.done():
                await wake.wait()
                wake.clear()
                for response in stream.respond(self._snapshot):
                    yield response
                self._announce()
        finally:
            reading.cancel()
            del self._streams[stream]
            CONNECTED.set(len(self._streams))
            self._announce()

    async def _read(
        self, stream: DeltaStream, requests: AsyncIterator[Request], wake: asyncio.Event
    ) -> None:
        try:
            async for request in requests:
                rejection = stream.receive(request)
                if rejection is not None:
                    self.rejections.append(rejection)
                    REJECTED.inc()
                    log.error(
                        "Envoy %s refused %s %s: %s",
                        stream.node, rejection.kind, rejection.names, rejection.text,
                    )  # fmt: skip
                wake.set()
        finally:
            wake.set()

    def _announce(self) -> None:
        """Wake everybody who waits for an Envoy to move; who waits anew gets a new event."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
