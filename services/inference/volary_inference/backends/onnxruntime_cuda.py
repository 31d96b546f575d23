"""onnxruntime on a GPU: the same graphs, refused by name where they cannot run there whole.

onnxruntime falls back to the CPU without a word, for a session as for a single node. Both are
turned off here: a version that says `onnxruntime-cuda` runs on the GPU or is not ready.
"""

from __future__ import annotations

import onnxruntime
from volary_kit.errors import FailedPrecondition

from volary_inference.backends.onnxruntime_cpu import OnnxGraph, session_options

BACKEND = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"
OPTIONS = {
    "device_id": "0",
    # TF32 keeps 10 bits of a float's 23: golden rows are compared with the CPU's
    "use_tf32": "0",
    # the exhaustive search times kernels, and picks others from one start to the next
    "cudnn_conv_algo_search": "HEURISTIC",
    "do_copy_in_default_stream": "1",
}


class CudaGraph(OnnxGraph):
    """A graph on the GPU, beside the same on the CPU that it is held against."""

    backend = BACKEND
    disagreement = "CUDA_DISAGREES"

    def __init__(self, data: bytes) -> None:
        require_cuda()
        super().__init__(data)
        if self._session.get_providers()[:1] != [PROVIDER]:
            raise unavailable("the session was made without the GPU")
        self.reference = OnnxGraph(data)

    @classmethod
    def _opened(cls, data: bytes) -> onnxruntime.InferenceSession:
        options = session_options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return onnxruntime.InferenceSession(data, options, providers=[(PROVIDER, OPTIONS)])


def require_cuda() -> None:
    """Raise FailedPrecondition `CUDA_UNAVAILABLE` where onnxruntime was built without CUDA."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise unavailable("this onnxruntime has no CUDA: install onnxruntime-gpu in its place")


def unavailable(text: str) -> FailedPrecondition:
    """Return the error of a GPU that cannot be used."""
    return FailedPrecondition("CUDA_UNAVAILABLE", f"CUDA cannot be used: {text}")
