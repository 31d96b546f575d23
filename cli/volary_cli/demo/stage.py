"""What is seen while the story is told: a line for each event, a live line for what goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

EVERY_S = 0.5
QUIET_EVERY_S = 5.0  # where nobody sees a live line, one is printed now and then


@dataclass
class Stage:
    """Speaks on standard error: standard output belongs to the report."""

    console: Console
    began_s: float = field(default_factory=time.monotonic)
    now: str = ""

    @property
    def seconds(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self.began_s

    def say(self, text: str) -> None:
        """Print an event of the story."""
        self.console.print(f"[dim]{self.seconds:6.1f}s[/]  {text}", highlight=False)

    @contextmanager
    def live(self, describe: Callable[[], str]) -> Iterator[None]:
        """Keep a line up to date while the block runs."""
        task = asyncio.create_task(self._follow(describe))
        try:
            yield
        finally:
            task.cancel()

    async def _follow(self, describe: Callable[[], str]) -> None:
        if not self.console.is_terminal:
            while True:
                await asyncio.sleep(QUIET_EVERY_S)
                self.say(f"[dim]{describe()}[/]")
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            while True:
                line = f"{self.seconds:6.1f}s  {describe()}"
                live.update(Text(line, style="cyan"), refresh=True)
                await asyncio.sleep(EVERY_S)
