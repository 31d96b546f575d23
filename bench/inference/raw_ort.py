"""The limit of a heavy model: onnxruntime alone on one thread, at its best batch."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from volary_inference.backends.onnxruntime_cpu import OnnxGraph

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 0.25  # a batch size


def best_rows_per_s(graph: OnnxGraph) -> float:
    """Return the most rows a second that any batch size gives."""
    spec = graph.signature.inputs[0]
    found = 0.0
    for rows in BATCHES:
        feeds = {spec.name: np.ones((rows, spec.shape[1]), np.float32)}
        graph.run(feeds)
        runs, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < SECONDS:
            graph.run(feeds)
            runs += 1
        found = max(found, runs * rows / (time.perf_counter() - began_s))
    return found


if __name__ == "__main__":
    sys.stdout.write(f"{best_rows_per_s(OnnxGraph(Path(sys.argv[1]).read_bytes()))}\n")
