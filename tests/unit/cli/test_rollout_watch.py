"""`volary rollout watch` looks when it is told of something, not twice a second."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from volary_cli.commands.rollout_watch import followed


class Rollout:
    """A rollout that somebody moves, and a stream that tells of it."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.queries = 0
        self.pushed: asyncio.Queue[object] = asyncio.Queue()
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def query(self):
        self.queries += 1
        return SimpleNamespace(state=self.states[0])

    async def pushes(self):
        while True:
            yield await self.pushed.get()

    def step(self) -> None:
        self.states.pop(0)
        self.pushed.put_nowait("traffic")

    def followed(self, show, refresh_s=3_600.0):
        return followed(self.query, self.pushes(), self.end, show, refresh_s=refresh_s)


async def test_each_push_is_one_look_and_the_end_is_pushed_too():
    rollout = Rollout("CANARY", "BAKING", "PROMOTED")
    seen: list[str] = []

    def show(found) -> None:
        seen.append(found.state)
        if found.state == "CANARY":
            rollout.step()
        elif found.state == "BAKING":
            rollout.states.pop(0)  # the promotion comes with no traffic of its own
            rollout.end.set_result(None)

    async with asyncio.timeout(10):
        found = await rollout.followed(show)
    assert (found.state, seen, rollout.queries) == ("PROMOTED", ["CANARY", "BAKING", "PROMOTED"], 3)


async def test_what_nobody_announces_is_seen_after_a_while():
    rollout = Rollout("AWAITING_APPROVAL")
    seen: list[str] = []

    def show(found) -> None:
        seen.append(found.state)
        if len(seen) == 3:
            rollout.states[0] = "ABORTED"

    async with asyncio.timeout(10):
        found = await rollout.followed(show, refresh_s=0.01)
    assert (found.state, len(seen)) == ("ABORTED", 4)


async def test_a_workflow_that_failed_is_an_end_as_any():
    rollout = Rollout("VALIDATING", "FAILED")

    def show(found) -> None:
        if found.state == "VALIDATING":
            rollout.states.pop(0)
            rollout.end.set_exception(RuntimeError("invalid specification"))

    async with asyncio.timeout(10):
        assert (await rollout.followed(show)).state == "FAILED"
