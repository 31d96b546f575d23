"""Points at which an activity stands still for as long as a file lies in a folder.

Where a rollout stands is decided by its activities, so whoever wants to see what a fault does at a
certain state holds that state's activity: before it does anything, or after it has done it and
before the workflow hears of it. A file outlives the worker, as what it holds must; one with the
ending `.held` beside it says that an activity has come that far.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

LOOK_S = 0.02
DONE, HELD = ".done", ".held"


class Failpoints(Interceptor):
    """Hold activities by the files of a folder, one for each point that is armed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the next interceptor."""
        return _Held(next, self._folder)


class _Held(ActivityInboundInterceptor):
    def __init__(self, following: ActivityInboundInterceptor, folder: Path) -> None:
        super().__init__(following)
        self._folder = folder

    async def execute_activity(self, input: ExecuteActivityInput) -> object:  # noqa: A002
        name = activity.info().activity_type
        points = points_of(name, input.args[0] if input.args else None)
        await self._passed(points)
        result = await super().execute_activity(input)
        await self._passed([point + DONE for point in points])
        return result

    async def _passed(self, points: list[str]) -> None:
        armed = [self._folder / point for point in points]
        while held := next((point for point in armed if point.exists()), None):
            held.with_name(held.name + HELD).touch()
            await asyncio.sleep(LOOK_S)


def points_of(name: str, message: object) -> list[str]:
    """Return the points of an activity: `model.activity`, and with its step where it has one."""
    subject = getattr(message, "subject", message)
    point = f"{getattr(subject, 'model', '')}.{name}"
    step = getattr(message, "step", "")
    return [point, f"{point}.{step}"] if step else [point]
