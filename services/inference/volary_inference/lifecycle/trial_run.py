"""The worker of trials: `python -m volary_inference.lifecycle.trial_run`, see `trial_worker`.

It imports once what loads graphs, and forks a child for each trial: that takes a hundredth of a
new process's time. It never has a second thread, so that a fork copies all there is of it, and
never reads an artifact: each comes as a file in memory that the child opens, under its limits.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path
from typing import NoReturn

from volary_kit.clock import SystemClock
from volary_kit.errors import VolaryError

from volary_inference.domain.batching import BatchPolicy
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package
from volary_inference.lifecycle.verdicts import Verdict

ORDERS = 0  # the socket that orders come by, as standard input
MAX_WORD = 64 << 10
SPARE_BYTES = 64 << 20  # what Python needs to say that there was not enough


def main() -> None:
    """Try what comes until nobody is left to ask."""
    with socket.socket(fileno=ORDERS) as orders:
        while True:
            data, files, _, _ = socket.recv_fds(orders, 1, 1)
            if not data:
                return
            code, said = _tried(files[0])
            os.close(files[0])
            orders.send(json.dumps({"code": code, "said": said}).encode())


def _tried(order: int) -> tuple[int, str]:
    """Run a trial in a child; return its exit code, negative for a signal, and its word."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(order, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read(MAX_WORD)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.decode(errors="replace")


def _run_child(order: int, writing: int) -> NoReturn:
    """Load and say how it went; whatever else happens is an exit code and no word."""
    code = 1
    try:
        _leave_the_worker(order, writing)
        os.write(writing, json.dumps(_word(order)).encode())
        code = 0
    finally:
        os._exit(code)  # nothing of the worker is flushed or taken apart here


def _leave_the_worker(*kept: int) -> None:
    """Hold no file but one's own: a word on the worker's socket would be a verdict."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    for each in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if each > 2 and each not in kept:
            os.closerange(each, each + 1)  # also one that is closed by now


def _word(order: int) -> dict[str, object]:
    with open(order, "rb", closefd=False) as file:
        asked = json.loads(file.readline())
        _limit(asked["memory_bytes"], asked["cpu_s"])
        try:
            return _try(file.read(), asked).as_document()
        except VolaryError as error:
            return {
                "error": type(error).__name__,
                "reason": error.reason,
                "message": error.message,
            }
        except MemoryError:
            return {
                "error": "ResourceExhausted",
                "reason": "TRIAL_OUT_OF_MEMORY",
                "message": "its first load took more memory than there is for it",
            }


def _limit(memory_bytes: int, cpu_s: int) -> None:
    """Limit private memory (RLIMIT_DATA counts it since Linux 4.7), time, and files to write."""
    memory_bytes += SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try(graph: bytes, asked: dict[str, object]) -> Verdict:
    loader = Loader(BatchPolicy(max_rows=int(str(asked["max_rows"]))), SystemClock())
    golden = asked["golden"]
    package = Package(
        Description("sha256:trial"), graph, golden if isinstance(golden, dict) else None
    )
    loaded = loader.open(package)
    loader.warm(loaded, package)
    return Verdict(loaded.signature)


if __name__ == "__main__":
    main()
