"""Work in a process of its own: niced, one thread, ended with whoever waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from volary_kit.errors import DeadlineExceeded, FailedPrecondition

Report = Callable[[dict[str, Any]], Awaitable[None]]
KEPT_LINES = 20


TRAIN, BUILD_VARIANT = "volary_trainer.run", "volary_trainer.variant_run"


async def train(
    folder: Path, *, niceness: int, threads: int, timeout_s: float, report: Report
) -> None:
    """Run `volary_trainer.run` on a folder and pass on each line of progress; errors as `work`."""
    await work(
        TRAIN, folder, niceness=niceness, threads=threads, timeout_s=timeout_s, report=report
    )


async def _silence(_line: dict[str, Any]) -> None: ...


async def work(
    module: str,
    folder: Path,
    *,
    niceness: int,
    threads: int,
    timeout_s: float,
    report: Report = _silence,
) -> None:
    """Run a module on a folder and pass on each line of progress.

    Raises FailedPrecondition `RUN_FAILED` with the process's own last line, and DeadlineExceeded;
    the process is gone when this returns, however it returns.
    """
    process = await asyncio.create_subprocess_exec(
        "nice",
        "-n",
        str(niceness),
        sys.executable,
        "-m",
        module,
        str(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=(folder / "log").open("wb"),
        env=_environment(threads),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            await _follow(process, report)
            code = await process.wait()
    except TimeoutError:
        raise DeadlineExceeded("RUN_TIMED_OUT", f"the run took more than {timeout_s:g} s") from None
    finally:
        await _end(process)
    if code != 0:
        raise FailedPrecondition("RUN_FAILED", _last_line(folder / "log"), {"exit_code": str(code)})


async def _follow(process: asyncio.subprocess.Process, report: Report) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(b"{"):  # the exporter talks as well
            await report(json.loads(line))


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a run: nothing of ours, so that no secret is in it."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    count = str(threads)
    return kept | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # repeatable sums where there is a GPU
        "PYTHONHASHSEED": "0",
    }


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:400] if lines else "the run ended without a word"
