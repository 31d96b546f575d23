"""A worker over a world in memory, on a queue of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from temporalio.testing import WorkflowEnvironment
from volary_workflows.worker import make_worker


class Peopled(Protocol):
    """A world: what the activities of its workflows are."""

    def activities(self) -> list[Callable[..., Any]]: ...


@asynccontextmanager
async def serving(environment: WorkflowEnvironment, world: Peopled) -> AsyncIterator[str]:
    """Run the worker; yields the name of the queue."""
    queue = f"test-{uuid.uuid4()}"
    async with make_worker(environment.client, world.activities(), task_queue=queue):
        yield queue
