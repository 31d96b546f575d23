"""What of the TensorRT backend can be tried without a GPU: its refusals, its cache, its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.backends.tensorrt import DRIVER, Bindings, PlanCache, require_supported
from volary_inference.domain.batching import BatchPolicy
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package
from volary_kit.clock import SystemClock
from volary_kit.errors import FailedPrecondition

from . import graphs

DIGEST = "sha256:" + "a" * 64


@pytest.mark.skipif(DRIVER.exists(), reason="there is a GPU here")
def test_without_a_gpu_a_version_is_refused_and_nothing_runs_it_instead(tmp_path: Path) -> None:
    loader = Loader(BatchPolicy(max_rows=8), SystemClock(), plans=PlanCache(tmp_path))
    with pytest.raises(FailedPrecondition, match="no GPU") as caught:
        loader.open(Package(Description(DIGEST), graphs.sigmoid_sum()))
    assert caught.value.reason == "TENSORRT_UNAVAILABLE"


def test_a_plan_is_kept_by_all_that_it_depends_on_and_read_only_as_it_was_written(
    tmp_path: Path,
) -> None:
    cache = PlanCache(tmp_path / "plans")
    path = cache.path(DIGEST, "H200 sm90", "11.2", (1, 2, 4))
    others = {
        cache.path(DIGEST.replace("a", "b"), "H200 sm90", "11.2", (1, 2, 4)),
        cache.path(DIGEST, "L4 sm89", "11.2", (1, 2, 4)),
        cache.path(DIGEST, "H200 sm90", "11.3", (1, 2, 4)),
        cache.path(DIGEST, "H200 sm90", "11.2", (1, 2, 8)),
    }
    assert len(others | {path}) == 5
    assert path.parent == tmp_path / "plans"
    assert cache.read(path) is None
    cache.write(path, b"engine")
    assert cache.read(path) == b"engine"
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert cache.read(path) is None


@pytest.mark.parametrize(
    "graph",
    [
        graphs.identity(TensorProto.STRING, [None, 2]),
        graphs.identity(TensorProto.DOUBLE, [None, 2]),
        graphs.identity(TensorProto.FLOAT, [None, None]),
        graphs.identity(TensorProto.FLOAT, [2, 2]),
    ],
    ids=["text", "double", "two sizes that vary", "no rows"],
)
def test_what_no_engine_can_carry_is_refused_by_name(graph: bytes) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        require_supported(OnnxGraph(graph).signature)
    assert caught.value.reason == "TENSORRT_UNSUPPORTED"
    require_supported(OnnxGraph(graphs.sigmoid_sum()).signature)


def test_a_driver_without_the_bindings_says_what_is_missing(tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM")
    with pytest.raises(FailedPrecondition) as caught:
        Bindings.found(driver)
    assert caught.value.reason == "TENSORRT_UNAVAILABLE"
