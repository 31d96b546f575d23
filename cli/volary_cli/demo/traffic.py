"""Live traffic: one ordered schedule of records and predictions, replayed faster than it was."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, pairwise
from typing import Protocol

from volary.inference.v1.prediction_service_pb2 import PredictResponse
from volary_client import AsyncClient
from volary_client.values import Scalar
from volary_kit.errors import VolaryError

FAILPOINT = "FAILPOINT"  # ErrorInfo reason of a fault that was armed


class Ask(Protocol):
    """A prediction to ask for."""

    @property
    def subject(self) -> str: ...
    @property
    def event_time(self) -> datetime: ...
    @property
    def entity_keys(self) -> Mapping[str, str]: ...
    @property
    def request_fields(self) -> Mapping[str, Scalar]: ...


class Tick(Protocol):
    """What happens in one stretch of time."""

    @property
    def until(self) -> datetime: ...
    @property
    def records(self) -> Mapping[str, list[dict[str, str]]]: ...
    @property
    def asks(self) -> list[Ask]: ...


@dataclass(slots=True)
class Tally:
    """What became of the calls, by the version that answered."""

    total: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    hurt: int = 0
    last: PredictResponse | None = None
    until: datetime | None = None
    pushed: int = 0

    @property
    def failed(self) -> int:
        """Calls that ended with an error."""
        return sum(self.failures.values())

    @property
    def failed_by_traffic_change(self) -> int:
        """Calls that failed although no fault was armed for them: every other failure counts."""
        return self.failed - self.failures[FAILPOINT]


@dataclass(slots=True)
class Replay:
    """Play ticks against the edge: push what became known, then ask what was asked.

    At most `in_flight` calls are open and `calls_per_s` begin. A call slower than `slow_s` that
    a version in `faulty` answered counts as hurt, like one that an armed fault failed.
    """

    client: AsyncClient
    model: str
    ticks: Iterable[Tick]
    sources: tuple[str, ...]
    in_flight: int = 16
    calls_per_s: float = 300.0
    slow_s: float = 0.25
    faulty: set[int] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    _stopped: bool = False
    _due_s: float = 0.0
    _ticked: asyncio.Condition = field(default_factory=asyncio.Condition)

    def stop(self) -> None:
        """End after the present tick."""
        self._stopped = True

    @contextmanager
    def serving(self) -> Iterator[asyncio.Task[None]]:
        """Play in the background; a failure of the replay itself ends the block."""
        task = asyncio.create_task(self.play())
        try:
            yield task
        finally:
            self.stop()

    async def load(self) -> None:
        """Read the schedule, in a thread: what it is made of takes seconds to parse."""
        self.ticks = await asyncio.to_thread(list, self.ticks)

    async def play(self) -> None:
        """Play all ticks, or until `stop`; what is known next is pushed while this is asked."""
        limit = asyncio.Semaphore(self.in_flight)
        async with asyncio.TaskGroup() as calls:
            pushing: asyncio.Task[None] | None = None
            for tick, following in pairwise(chain(self.ticks, [None])):
                if self._stopped or tick is None:
                    return
                await (pushing or self._push(tick))
                pushing = calls.create_task(self._push(following)) if following else None
                await self._ask_all(tick, limit, calls)
                self.tally.until = tick.until
                async with self._ticked:
                    self._ticked.notify_all()

    async def _ask_all(
        self, tick: Tick, limit: asyncio.Semaphore, calls: asyncio.TaskGroup
    ) -> None:
        loop = asyncio.get_running_loop()
        for ask in tick.asks:
            await limit.acquire()
            self._due_s = max(self._due_s + 1 / self.calls_per_s, loop.time() - 0.1)
            await asyncio.sleep(self._due_s - loop.time())
            calls.create_task(self._ask(ask, limit))

    async def reached(self, instant: datetime) -> None:
        """Return once the world has been played up to an instant."""
        async with self._ticked:
            await self._ticked.wait_for(
                lambda: self.tally.until is not None and self.tally.until >= instant
            )

    async def _push(self, tick: Tick) -> None:
        records = {source: tick.records.get(source, []) for source in self.sources}
        await asyncio.gather(
            *(
                self.client.push(source, rows, watermark=tick.until)
                for source, rows in records.items()
            )
        )
        self.tally.pushed += sum(map(len, records.values()))

    async def _ask(self, ask: Ask, limit: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            reply = await self.client.predict(
                self.model,
                ask.entity_keys,
                ask.request_fields,
                event_time=ask.event_time,
                min_watermark=ask.event_time,
                subject=ask.subject,
                timeout_s=10,
            )
        except VolaryError as error:
            self._failed(error)
        else:
            self._answered(reply, loop.time() - began_s)
        finally:
            limit.release()
            self.tally.total += 1

    def _failed(self, error: VolaryError) -> None:
        self.tally.failures[error.reason] += 1
        self.tally.hurt += error.reason == FAILPOINT

    def _answered(self, reply: PredictResponse, elapsed_s: float) -> None:
        version = reply.provenance.version
        self.tally.answered[version] += 1
        self.tally.hurt += version in self.faulty and elapsed_s > self.slow_s
        self.tally.last = reply
