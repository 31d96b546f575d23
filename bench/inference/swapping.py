"""Version swaps under load, and whether each single call was answered by its time's version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.inference import graphs
from bench.inference.measuring import Times
from bench.inference.served import Served
from bench.load.generator import Generator
from bench.report import Goal, Line

SLICE_S = 2.0  # of load: the generator says at the end of each what was answered when
CALLERS = 8
MODEL = "swapped"


@dataclass
class Tenure:
    """When a version may have answered, in microseconds of the wall clock.

    From the moment when gateway says that it is in production; until the service has said that it
    does what gateway said next.
    """

    from_us: int
    until_us: int | None = None

    def is_right(self, asked_us: np.ndarray, answered_us: np.ndarray) -> np.ndarray:
        """Say of each call whether the version was in production at any moment of it."""
        is_begun = answered_us >= self.from_us
        return is_begun if self.until_us is None else is_begun & (asked_us <= self.until_us)


@dataclass
class Swaps:
    """The versions that were in production, and when."""

    number: int
    tenures: dict[int, Tenure] = field(default_factory=dict)
    is_done: bool = False
    begun_us: int = field(default_factory=time.time_ns)
    started_s: float = field(default_factory=time.monotonic)

    def now_us(self) -> int:
        """Return the time by a clock that nobody sets meanwhile."""
        return self.begun_us // 1_000 + int((time.monotonic() - self.started_s) * 1e6)


def count_wrong(answers: Path, tenures: Mapping[int, Tenure]) -> tuple[int, int]:
    """Return how many calls of a file were answered, and how many by another version."""
    if not answers.stat().st_size:
        return 0, 0
    rows = np.loadtxt(answers, dtype=np.int64, ndmin=2)
    wrong = 0
    for number in np.unique(rows[:, 2]):
        asked_us, answered_us, _ = rows[rows[:, 2] == number].T
        tenure = tenures.get(int(number))
        wrong += len(asked_us) - (
            0 if tenure is None else tenure.is_right(asked_us, answered_us).sum()
        )
    return len(rows), int(wrong)


async def swaps(generator: Generator, server: Served, times: Times) -> list[Line]:
    """Swap the production version again and again under load; count what failed or went wrong."""
    state = await _begin(server)
    failed = 0
    files: list[Path] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(_swap(server, times.swaps, state))
        while not state.is_done:
            files.append(server.folder / f"{server.engine}-answers-{len(files)}")
            found = await generator.run(
                server.target(MODEL), seconds=SLICE_S, warmup=0, concurrency=CALLERS,
                answers=files[-1],
            )  # fmt: skip
            failed += found.failed
    counts = [await asyncio.to_thread(count_wrong, each, state.tenures) for each in files]
    for each in files:
        each.unlink()
    answered, wrong = (sum(column) for column in zip(*counts, strict=True))
    none = Goal("<=", 0, "ours")
    return [
        Line("version_swaps_failed", failed, "calls", none, times.swaps, "swaps under load"),
        Line("version_swaps_wrong", wrong, "calls", none, answered, "answers in the swaps"),
    ]


async def _begin(server: Served) -> Swaps:
    """Put a version into production, beside those that an earlier part has left there."""
    gateway = server.peers.gateway
    others = [each for each in gateway.desired.versions if each.model != MODEL]
    number = max((v.version for v in gateway.desired.versions if v.model == MODEL), default=2)
    state = Swaps(number)
    state.tenures[number] = Tenure(state.now_us())
    gateway.want(*others, _version(server, number, is_production=True))
    await server.until_ready(number)
    await server.until_applied()
    return state


async def _swap(server: Served, count: int, state: Swaps) -> None:
    """Load the next version beside the old one, give it the calls, let the old one go."""
    gateway = server.peers.gateway
    others = [each for each in gateway.desired.versions if each.model != MODEL]
    try:
        for number in range(state.number + 1, state.number + 1 + count):
            old = _version(server, number - 1, is_production=True)
            gateway.want(*others, old, _version(server, number, is_production=False))
            await server.until_ready(number)
            state.tenures[number] = Tenure(state.now_us())
            gateway.want(*others, _version(server, number, is_production=True))
            await server.until_applied()
            state.tenures[number - 1].until_us = state.now_us()
    finally:
        state.is_done = True


def _version(server: Served, number: int, *, is_production: bool):  # noqa: ANN202 - a message
    # two artifacts in turn: the first load of each is tried in a child process, which takes seconds
    graph = graphs.perceptron(graphs.SMALL, seed=number % 2)
    return server.peers.registry.add(number, graph, model=MODEL, production=is_production)
