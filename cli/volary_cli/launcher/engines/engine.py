"""What every engine offers, and how one is run on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.folder import tail
from volary_cli.launcher.processes import Child, Command, spawn

POLL_S = 0.05


class Engine(Protocol):
    """An embedded engine."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str:
        """Where it answers, as host:port."""
        ...

    async def prepare(self) -> None:
        """Make what must be there before the first start; costs nothing when it is."""
        ...

    def command(self) -> Command:
        """Return how to start it."""
        ...

    async def is_ready(self) -> bool:
        """Ask the running engine itself."""
        ...


AnyEngine = TypeVar("AnyEngine", bound=Engine)


@asynccontextmanager
async def running(
    engine: AnyEngine, log: Path, *, deadline_s: float = 60.0
) -> AsyncIterator[AnyEngine]:
    """Run one engine for the length of a block.

    Raises EngineError with the end of its log when it does not become ready in time.
    """
    await engine.prepare()
    child = await spawn(engine.command(), log)
    try:
        await _until_ready(engine, child, log, deadline_s)
        yield engine
    finally:
        await child.stop()


async def _until_ready(engine: Engine, child: Child, log: Path, deadline_s: float) -> None:
    try:
        async with asyncio.timeout(deadline_s):
            while not await engine.is_ready():
                if child.exit_code is not None:
                    raise EngineError(f"{engine.name} ended with {child.exit_code}:\n{tail(log)}")
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise EngineError(
            f"{engine.name} is not ready after {deadline_s:.0f} s:\n{tail(log)}"
        ) from error
