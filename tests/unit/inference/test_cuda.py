"""What of the CUDA backend can be tried without a GPU: that nothing runs in its place."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from volary_inference.backends import onnxruntime_cuda
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.backends.onnxruntime_cuda import PROVIDER, CudaGraph
from volary_inference.backends.tensorrt import require_agreement
from volary_inference.domain.batching import BatchPolicy
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package
from volary_kit.clock import SystemClock
from volary_kit.errors import FailedPrecondition

from . import graphs

WITHOUT = pytest.mark.skipif(
    PROVIDER in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)


@WITHOUT
def test_without_cuda_a_version_is_refused_and_nothing_runs_it_instead() -> None:
    loader = Loader(BatchPolicy(max_rows=8), SystemClock(), is_on_cuda=True)
    with pytest.raises(FailedPrecondition, match="has no CUDA") as caught:
        loader.open(Package(Description("sha256:x"), graphs.sigmoid_sum()))
    assert caught.value.reason == "CUDA_UNAVAILABLE"


@WITHOUT
def test_a_session_that_fell_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "require_cuda", lambda: None)
    monkeypatch.setattr(CudaGraph, "_opened", OnnxGraph._opened)
    with pytest.raises(FailedPrecondition, match="without the GPU"):
        CudaGraph(graphs.sigmoid_sum())


def test_what_the_device_says_otherwise_is_refused() -> None:
    graph = CudaGraph.__new__(CudaGraph)
    here, there = OnnxGraph(graphs.sigmoid_sum(bias=1.0)), OnnxGraph(graphs.sigmoid_sum())
    graph.run, graph.reference = here.run, there
    rows = {"features": np.zeros((2, 3), np.float32)}
    with pytest.raises(FailedPrecondition) as caught:
        require_agreement(graph, rows, 1e-4)
    assert caught.value.reason == "CUDA_DISAGREES"
