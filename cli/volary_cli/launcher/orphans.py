"""Processes that a supervisor left behind when it was killed."""

from __future__ import annotations

from pathlib import Path

import psutil

MARK = "VOLARY_MESH"  # in the environment of everything that a mesh starts
WAIT_S = 10.0


def mark(folder: Path) -> dict[str, str]:
    """Return the environment entry by which a mesh's processes are known, children included."""
    return {MARK: str(folder)}


def orphans(folder: Path) -> list[psutil.Process]:
    """Return the processes of a mesh; only its lock's holder may call them orphans."""
    return [process for process in psutil.process_iter() if _mark_of(process) == str(folder)]


def end_orphans(folder: Path) -> int:
    """Kill what is left of a mesh and return how many processes that were."""
    left = orphans(folder)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=WAIT_S)
    return len(left)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # gone, a zombie, or another user's
        return None
