"""How many inference replicas this machine runs, by the time that calls wait for a batch.

Queue time is the signal, not processor load: it is what a caller feels, and it is zero as long as
a replica keeps up, whatever else the machine does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from volary_kit.clock import Clock
from volary_kit.errors import VolaryError

log = logging.getLogger(__name__)
LOOK_S = 0.5


@dataclass(frozen=True)
class ScalingPolicy:
    """Between which numbers, and by which waits.

    A replica joins when calls have waited longer than `high_us` for `rise_s`, and leaves when
    they have waited less than `low_us` for `fall_s`: longer, since a replica that leaves too
    early is soon missed. The two waits lie apart, or the number would swing.
    """

    minimum: int
    maximum: int
    high_us: int = 10_000
    low_us: int = 2_000
    rise_s: float = 3.0
    fall_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise ValueError("scaling wants 1 <= minimum <= maximum")
        if not 0 <= self.low_us < self.high_us:
            raise ValueError("scaling wants 0 <= low_us < high_us")


class Scaler:
    """Decide from one look after the other; no clock, no process."""

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        self._since: tuple[int, float] | None = None  # direction, and since when

    def decide(self, now_s: float, queue_us: Sequence[int], running: int) -> int:
        """Return how many replicas there should be, at most one more or less than there are.

        `queue_us` has the wait of each replica that takes calls; one that is started and not
        there yet counts among `running` alone, and nothing is decided until it is.
        """
        policy = self._policy
        inside = min(max(running, policy.minimum), policy.maximum)
        if inside != running:
            return running + (1 if inside > running else -1)
        if len(queue_us) < running:
            self._since = None
            return running
        direction = self._direction(sum(queue_us) / len(queue_us))
        if self._since is None or self._since[0] != direction:
            self._since = (direction, now_s)
        waited_s = now_s - self._since[1]
        target = running + direction
        patience_s = policy.rise_s if direction > 0 else policy.fall_s
        if not direction or waited_s < patience_s or not self._allows(target):
            return running
        self._since = None
        return target

    def _direction(self, mean_us: float) -> int:
        if mean_us > self._policy.high_us:
            return 1
        return -1 if mean_us < self._policy.low_us else 0

    def _allows(self, number: int) -> bool:
        return self._policy.minimum <= number <= self._policy.maximum


@dataclass(frozen=True)
class Replicas:
    """The replicas of this machine: how long calls wait at each, and how to change their number.

    `remove` returns when the replica is gone; it drains first, so no call is lost.
    """

    queue_us: Callable[[], Awaitable[Sequence[int]]]
    add: Callable[[int], Awaitable[None]]
    remove: Callable[[int], Awaitable[None]]


class Autoscaler:
    """Keep the number of replicas what the scaler says; the last one that came goes first."""

    def __init__(
        self, policy: ScalingPolicy, replicas: Replicas, running: int, clock: Clock
    ) -> None:
        self._scaler = Scaler(policy)
        self._replicas = replicas
        self._clock = clock
        self.running = running

    async def run_always(self, look_s: float = LOOK_S) -> None:
        """Look and act, for ever; without an answer from gateway nothing changes."""
        while True:
            try:
                await self.look()
            except VolaryError as error:
                log.warning("scaling waits for gateway: %s", error.reason)
            await asyncio.sleep(look_s)

    async def look(self) -> None:
        """Look once, and start or stop one replica if need be."""
        queue_us = await self._replicas.queue_us()
        target = self._scaler.decide(self._clock.monotonic_s(), queue_us, self.running)
        if target > self.running:
            log.info("calls wait %s us: replica %d joins", list(queue_us), self.running)
            await self._replicas.add(self.running)
            self.running += 1
        elif target < self.running:
            self.running -= 1
            log.info("calls wait %s us: replica %d leaves", list(queue_us), self.running)
            await self._replicas.remove(self.running)
