"""Follow a rollout by what is pushed: gateway tells of each step, Temporal of the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from volary_kit.errors import VolaryError

if TYPE_CHECKING:
    from volary_client import AsyncClient
    from volary_workflows.rollout.messages import RolloutStatus

REFRESH_S = 5.0  # nobody pushes what the judge says between two steps, nor a wait for a person
RETRY_S = 1.0
ENDED = {"PROMOTED", "ROLLED_BACK", "ABORTED", "FAILED", "SUPERSEDED"}


async def followed(
    query: Callable[[], Awaitable[RolloutStatus]],
    pushes: AsyncIterator[object],
    end: Awaitable[object],
    show: Callable[[RolloutStatus], None],
    *,
    refresh_s: float = REFRESH_S,
) -> RolloutStatus:
    """Show the rollout at once and after each push, until it has ended; return it then.

    A look that nobody announces is at most `refresh_s` old.
    """
    news = asyncio.Event()
    listening = asyncio.create_task(_listen(pushes, news))
    ending = asyncio.ensure_future(end)
    ending.add_done_callback(lambda _: news.set())
    try:
        while True:
            news.clear()
            found = await query()
            show(found)
            if found.state in ENDED:
                return found
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), refresh_s)
    finally:
        for task in (listening, ending):
            task.cancel()
        await asyncio.gather(listening, ending, return_exceptions=True)


async def _listen(pushes: AsyncIterator[object], news: asyncio.Event) -> None:
    async for _ in pushes:
        news.set()


async def traffic_of(client: AsyncClient, model: str) -> AsyncIterator[object]:
    """Yield whenever the traffic of a model changes; a gateway that is away is tried again."""
    from volary.gateway.v1.traffic_service_pb2 import WatchTrafficRequest

    name = f"projects/{client.project}/models/{model}/traffic"
    while True:
        with suppress(VolaryError):
            async for traffic in client.traffic.WatchTraffic(WatchTrafficRequest(name=name)):
                yield traffic
        await asyncio.sleep(RETRY_S)
