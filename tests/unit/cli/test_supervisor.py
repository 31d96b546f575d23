"""The supervisor, on small processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from volary_cli.launcher.component import Component, Health, Kind, UnknownNeedError, levels
from volary_cli.launcher.errors import StartError
from volary_cli.launcher.orphans import end_orphans, mark, orphans
from volary_cli.launcher.processes import Command
from volary_cli.launcher.supervisor import Supervisor

DEADLINE_S = 15.0
# touches its file when it is up, appends to the journal when it is told to stop
PROCESS = textwrap.dedent("""
    import pathlib, signal, subprocess, sys, time
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    def stop(*_):
        with (folder / "stopped").open("a") as journal: journal.write(name + "\\n")
        (folder / name).unlink(missing_ok=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    if "child" in sys.argv: subprocess.Popen(["sleep", "1000"])
    (folder / name).write_text("up")
    while True: time.sleep(1000)
""")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.02)


def is_over(process: psutil.Process) -> bool:
    """Say whether a process does nothing any more; who should reap it may take its time."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Stage:
    """A folder with components that live in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[str] = []

    def component(self, name: str, *needs: str, argv: tuple[str, ...] = ()) -> Component:
        words = argv or (sys.executable, "-c", PROCESS, name, str(self.folder))

        def command() -> Command:
            (self.folder / name).unlink(missing_ok=True)
            self.started.append(name)
            return Command(words, self.folder, mark(self.folder))

        async def is_ready() -> bool:
            return (self.folder / name).exists()

        return Component(name, Kind.SERVICE, command, is_ready, needs)

    def supervisor(self, *components: Component, deadline_s: float = DEADLINE_S) -> Supervisor:
        return Supervisor(
            components,
            lambda name: self.folder / f"{name}.log",
            lambda: None,
            start_deadline_s=deadline_s,
        )


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    yield Stage(tmp_path)
    end_orphans(tmp_path)


async def test_starts_what_is_needed_first_and_stops_it_last(stage: Stage) -> None:
    a, b, c = (
        stage.component("a"),
        stage.component("b", "a"),
        stage.component("c", "b"),
    )
    supervisor = stage.supervisor(c, b, a)
    await supervisor.start()
    assert stage.started == ["a", "b", "c"]
    assert all(row.health is Health.READY for row in supervisor.conditions.values())
    await supervisor.stop()
    assert (stage.folder / "stopped").read_text().split() == ["c", "b", "a"]
    assert not orphans(stage.folder)


async def test_component_joins_and_leaves_while_others_run(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.component("a"))
    await supervisor.start()
    await supervisor.add(stage.component("b", "a", "somebody else's"))
    await until(lambda: supervisor.conditions["b"].health is Health.READY)
    await supervisor.remove("b")
    assert list(supervisor.conditions) == ["a"]
    assert (stage.folder / "stopped").read_text().split() == ["b"]
    await supervisor.add(stage.component("b", "a"))
    await until(lambda: supervisor.conditions["b"].health is Health.READY)
    await supervisor.stop()
    assert (stage.folder / "stopped").read_text().split() == ["b", "b", "a"]
    assert not orphans(stage.folder)


async def test_what_dies_comes_back_and_is_counted(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.component("a"))
    await supervisor.start()
    condition = supervisor.conditions["a"]
    first = condition.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: condition.pid not in (None, first) and condition.health is Health.READY)
    assert condition.restarts == 1
    await supervisor.stop()


async def test_a_component_that_ends_before_it_is_ready_fails_the_start_with_its_log(
    stage: Stage,
) -> None:
    broken = stage.component("broken", argv=("/bin/sh", "-c", "echo no such table; exit 1"))
    supervisor = stage.supervisor(stage.component("a"), broken)
    with pytest.raises(StartError, match=r"(?s)broken ended with 1.*no such table"):
        await supervisor.start()
    await supervisor.stop()
    assert not orphans(stage.folder)
    assert stage.started.count("broken") == 3


async def test_broken_settings_are_not_tried_again(stage: Stage) -> None:
    broken = stage.component("broken", argv=("/bin/sh", "-c", "exit 2"))
    supervisor = stage.supervisor(broken)
    with pytest.raises(StartError):
        await supervisor.start()
    await supervisor.stop()
    assert stage.started == ["broken"]


async def test_a_component_that_is_never_ready_fails_the_start(stage: Stage) -> None:
    supervisor = stage.supervisor(
        stage.component("mute", argv=("/bin/sleep", "1000")), deadline_s=0.5
    )
    with pytest.raises(StartError, match="mute is not ready after"):
        await supervisor.start()
    await supervisor.stop()
    assert not orphans(stage.folder)


async def test_a_missing_program_is_named(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.component("gone", argv=("/no/such/program",)))
    with pytest.raises(StartError, match="/no/such/program"):
        await supervisor.start()
    await supervisor.stop()


async def test_children_of_a_component_end_with_it(stage: Stage) -> None:
    words = (sys.executable, "-c", PROCESS, "a", str(stage.folder), "child")
    supervisor = stage.supervisor(stage.component("a", argv=words))
    await supervisor.start()
    pid = supervisor.conditions["a"].pid
    assert pid is not None
    (child,) = psutil.Process(pid).children()
    await supervisor.stop()
    await until(lambda: is_over(child))


async def test_a_component_that_ignores_the_request_is_killed(stage: Stage) -> None:
    script = f"trap '' TERM; touch {stage.folder}/deaf; while :; do sleep 0.1; done"
    component = stage.component("deaf", argv=("/bin/sh", "-c", script))
    supervisor = stage.supervisor(component)
    await supervisor.start()
    child = supervisor._children["deaf"]
    assert await child.stop(kill_after_s=0.2) == -signal.SIGKILL
    await supervisor.stop()


def test_a_ring_and_an_unknown_need_are_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(UnknownNeedError, match="ring"):
        levels((stage.component("a", "b"), stage.component("b", "a")))
    with pytest.raises(UnknownNeedError, match="nothing"):
        levels((stage.component("a", "nothing"),))


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import asyncio, json, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_supervisor import Stage
        async def main():
            stage = Stage(Path({str(tmp_path)!r}))
            supervisor = stage.supervisor(stage.component("a"), stage.component("b", "a"))
            await supervisor.start()
            print(json.dumps([c.pid for c in supervisor.conditions.values()]), flush=True)
            await asyncio.sleep(1000)
        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        process.kill()
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    give_up_s = time.monotonic() + DEADLINE_S
    while not all(is_over(each) for each in left):
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def test_what_a_killed_mesh_left_is_swept_up(tmp_path: Path) -> None:
    left = subprocess.Popen(["/bin/sleep", "1000"], env={**os.environ, **mark(tmp_path)})
    other = subprocess.Popen(["/bin/sleep", "1000"], env={**os.environ, **mark(tmp_path / "x")})
    try:
        give_up_s = time.monotonic() + DEADLINE_S
        while not orphans(tmp_path) and time.monotonic() < give_up_s:
            time.sleep(0.02)  # until the exec that puts the mark into its environment
        assert end_orphans(tmp_path) == 1
        assert left.poll() is not None
        assert other.poll() is None
    finally:
        for process in (left, other):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
