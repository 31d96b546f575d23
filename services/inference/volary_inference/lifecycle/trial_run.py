"""The child of a trial: `python -m volary_inference.lifecycle.trial_run`, see `trial`."""

from __future__ import annotations

import json
import resource
import sys

from volary_kit.clock import SystemClock
from volary_kit.errors import VolaryError

from volary_inference.domain.batching import BatchPolicy
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package

SPARE_BYTES = 64 << 20  # what Python needs to say that there was not enough


def main() -> None:
    """Read the order and the graph, try them, and say how it went in the last line."""
    order = json.loads(sys.stdin.buffer.readline())
    graph = sys.stdin.buffer.read()
    _limit(order["memory_bytes"], order["cpu_s"])
    try:
        _try(graph, order)
    except VolaryError as error:
        word = {
            "error": type(error).__name__,
            "reason": error.reason,
            "message": error.message,
        }
    except MemoryError:
        word = {
            "error": "ResourceExhausted",
            "reason": "TRIAL_OUT_OF_MEMORY",
            "message": "its first load took more memory than there is for it",
        }
    else:
        word = {}
    sys.stdout.write("\n" + json.dumps(word))


def _limit(memory_bytes: int, cpu_s: int) -> None:
    """Limit private memory (RLIMIT_DATA counts it since Linux 4.7), time, and files to write."""
    memory_bytes += SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try(graph: bytes, order: dict[str, object]) -> None:
    loader = Loader(BatchPolicy(max_rows=int(str(order["max_rows"]))), SystemClock())
    golden = order["golden"]
    package = Package(
        Description("sha256:trial"), graph, golden if isinstance(golden, dict) else None
    )
    loader.warm(loader.open(package), package)


if __name__ == "__main__":
    main()
