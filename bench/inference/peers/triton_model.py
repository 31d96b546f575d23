"""The perceptron as Triton runs it: its Python backend, batched by Triton, run by onnxruntime.

The server that `nvidia-pytriton` bundles has no ONNX backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    """onnxruntime on one thread; requests that Triton hands over together run together."""

    def initialize(self, args: dict[str, Any]) -> None:  # noqa: ARG002 - Triton's own signature
        """Load the graph beside this file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(__file__).with_name("small.onnx")
        self._session = onnxruntime.InferenceSession(path, options)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the rows of all requests at once, and cut the replies apart."""
        rows = [backend.get_input_tensor_by_name(each, "features").as_numpy() for each in requests]
        (logits,) = self._session.run(None, {"features": np.concatenate(rows)})
        ends = np.cumsum([len(each) for each in rows])[:-1]
        return [
            backend.InferenceResponse([backend.Tensor("logits", part)])
            for part in np.split(logits, ends)
        ]
