"""Keep a table of components running: start in order, restart with back-off, stop in reverse."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from volary_cli.launcher.component import Component, Condition, Health, levels
from volary_cli.launcher.errors import EngineError, StartError
from volary_cli.launcher.folder import tail
from volary_cli.launcher.processes import Child, Command, spawn

FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 10.0
STEADY_S = 30.0  # a component that ran this long starts again without a longer wait
READY_POLL_S = 0.2
WATCH_S = 1.0
START_DEADLINE_S = 180.0
STARTS = 3  # a component that ends this often before it is ready will not get better
BROKEN_SETTINGS = 2  # exit status of a service whose settings are broken: no second try
log = logging.getLogger(__name__)


class Supervisor:
    """Run components until told to stop.

    `changed` is called whenever a condition changed; `log_of` gives a component's log file.
    """

    def __init__(
        self,
        components: Sequence[Component],
        log_of: Callable[[str], Path],
        changed: Callable[[], None],
        *,
        start_deadline_s: float = START_DEADLINE_S,
    ) -> None:
        self._layers = levels(tuple(components))
        self._log_of = log_of
        self._changed = changed
        self._start_deadline_s = start_deadline_s
        self._children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[None] | None = None
        self.conditions = {c.name: Condition(c) for layer in self._layers for c in layer}

    async def start(self) -> None:
        """Start everything; return when all is ready.

        Raises StartError when one component cannot start; the caller then calls `stop`.
        """
        self._failure = asyncio.get_running_loop().create_future()
        for condition in self.conditions.values():
            keeper = self._keep(condition)
            self._tasks[condition.component.name] = asyncio.create_task(keeper)
        everything = asyncio.create_task(self._all_usable())
        try:
            await asyncio.wait((everything, self._failure), return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                await self._failure
        finally:
            everything.cancel()

    async def _all_usable(self) -> None:
        for condition in self.conditions.values():
            await condition.usable.wait()

    async def stop(self) -> None:
        """Stop everything, the last started first, a layer at a time."""
        for layer in reversed(self._layers):
            await asyncio.gather(*(self._stop(component.name) for component in layer))
        if self._failure is not None and self._failure.done():
            self._failure.exception()  # was told when it was raised

    async def add(self, component: Component) -> None:
        """Start one more component, which is stopped first.

        What it needs runs already, here or, as an engine of somebody else's, elsewhere.
        """
        needs = tuple(name for name in component.needs if name in self.conditions)
        component = replace(component, needs=needs)
        condition = Condition(component)
        self._layers.append([component])
        self.conditions[component.name] = condition
        self._tasks[component.name] = asyncio.create_task(self._keep(condition))

    async def remove(self, name: str) -> None:
        """Stop a component cleanly and forget it."""
        await self._stop(name)
        kept = [[c for c in layer if c.name != name] for layer in self._layers]
        self._layers = [layer for layer in kept if layer]
        del self.conditions[name]
        self._changed()

    async def _stop(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        child = self._children.pop(name, None)
        if child is not None:
            await child.stop()
        self._note(self.conditions[name], Health.DOWN, pid=None)

    async def _keep(self, condition: Condition) -> None:
        """Start a component when what it needs is usable, and again whenever it ends."""
        component = condition.component
        for need in component.needs:
            await self.conditions[need].usable.wait()
        try:
            await self._run_for_ever(condition)
        except Exception as error:  # noqa: BLE001 - the supervisor: whatever it is, the start fails
            self._fail(_explained(component, error))

    async def _run_for_ever(self, condition: Condition) -> None:
        loop = asyncio.get_running_loop()
        back_off_s, starts = FIRST_BACK_OFF_S, 0
        while True:
            began_s = loop.time()
            try:
                code: object = await self._run_once(condition)
            except Exception as error:
                if not condition.usable.is_set():
                    raise
                log.exception("%s does not start again", condition.component.name)
                code = error  # it ran before: the next try may find disk and port again
            starts += 1
            self._note(condition, Health.DOWN, pid=None)
            if not condition.usable.is_set() and (starts >= STARTS or code == BROKEN_SETTINGS):
                raise self._start_error(condition, f"ended with {code} before it was ready")
            if loop.time() - began_s > STEADY_S:
                back_off_s = FIRST_BACK_OFF_S
            log.warning("%s ended with %s", condition.component.name, code)
            await asyncio.sleep(back_off_s)
            back_off_s = min(LONGEST_BACK_OFF_S, back_off_s * 2)
            condition.restarts += 1

    async def _run_once(self, condition: Condition) -> int:
        """Start the process, follow its health, return its exit status."""
        component = condition.component
        condition.started_s = asyncio.get_running_loop().time()
        self._note(condition, Health.STARTING, pid=None)
        await component.prepare()
        condition.version = condition.version or await asyncio.to_thread(component.version)
        command: Command = component.command()
        child = await spawn(command, self._log_of(component.name))
        self._children[component.name] = child
        self._note(condition, Health.STARTING, pid=child.pid)
        watcher = asyncio.create_task(self._watch(condition))
        watcher.add_done_callback(lambda task: self._watch_ended(component, task))
        try:
            code = await child.wait()
        finally:
            watcher.cancel()
        del self._children[component.name]
        return code

    async def _watch(self, condition: Condition) -> None:
        """Ask until ready, then for ever; say what was found."""
        await self._until_ready(condition)
        self._note_ready(condition)
        if not condition.usable.is_set():
            await condition.component.provision()
            condition.usable.set()
        self._note(condition, Health.READY, condition.pid)
        while True:
            await asyncio.sleep(WATCH_S)
            is_ready = await self._asked(condition.component)
            self._note(condition, Health.READY if is_ready else Health.DEGRADED, condition.pid)

    async def _until_ready(self, condition: Condition) -> None:
        """Ask until it says yes; before the first time there is a deadline."""
        deadline_s = None if condition.usable.is_set() else self._start_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                while not await self._asked(condition.component):  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError:
            text = f"is not ready after {self._start_deadline_s:.0f} s"
            raise self._start_error(condition, text) from None

    async def _asked(self, component: Component) -> bool:
        try:
            return await component.is_ready()
        except Exception:  # the supervisor: a question that fails is a no
            log.exception("asking %s failed", component.name)
            return False

    def _note_ready(self, condition: Condition) -> None:
        if condition.ready_after_s is None:
            now_s = asyncio.get_running_loop().time()
            condition.ready_after_s = now_s - condition.started_s

    def _watch_ended(self, component: Component, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(_explained(component, error))

    def _note(self, condition: Condition, health: Health, pid: int | None) -> None:
        if (condition.health, condition.pid) != (health, pid):
            condition.health, condition.pid = health, pid
            self._changed()

    def _start_error(self, condition: Condition, what: str) -> StartError:
        name = condition.component.name
        path = self._log_of(name)
        return StartError(f"{name} {what}. The end of {path}:\n{tail(path)}")

    def _fail(self, error: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)


def _explained(component: Component, error: BaseException) -> Exception:
    """Return the error that a person is shown."""
    if isinstance(error, StartError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StartError(f"{component.name}: the disk is full: {error}")
    if isinstance(error, EngineError | OSError):
        return StartError(f"{component.name}: {error}")
    log.error("%s failed", component.name, exc_info=error)
    return StartError(f"{component.name}: {type(error).__name__}: {error}")
