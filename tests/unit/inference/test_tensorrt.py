"""What of the TensorRT backend can be tried without a GPU: its refusals, its cache, its calls."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.backends.tensorrt import (
    DRIVER,
    Bindings,
    PlanCache,
    TensorRtGraph,
    require_agreement,
    require_supported,
)
from volary_inference.domain.batching import BatchPolicy
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.package import Description, Package
from volary_kit.clock import SystemClock
from volary_kit.errors import FailedPrecondition

from . import graphs
from .tensorrt_device import Device

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


SIZES = (1, 2, 4)


def graph_on(device: Device, cache: PlanCache) -> TensorRtGraph:
    found = Bindings(device.trt, device.cuda, "none sm0")
    return TensorRtGraph(graphs.sigmoid_sum(), DIGEST, SIZES, cache, found)


def test_each_batch_size_has_its_profile_and_its_recorded_graph(tmp_path: Path) -> None:
    device = Device()
    graph = graph_on(device, PlanCache(tmp_path))
    [config] = device.builds
    assert [profile.shapes for profile in config.profiles] == [
        {"features": (rows, 3)} for rows in SIZES
    ]
    reference = OnnxGraph(graphs.sigmoid_sum())
    for rows in (1, 2, 3, 4, 9):
        feeds = {"features": np.random.default_rng(rows).normal(size=(rows, 3)).astype("f4")}
        found = graph.run(feeds)["probability"]
        np.testing.assert_array_equal(found, reference.run(feeds)["probability"])
    assert device.launches == 4 + 3, "nine rows take three runs"
    require_agreement(graph, {"features": np.zeros((3, 3), np.float32)}, 0.0)


def test_an_engine_is_built_once_and_the_times_of_kernels_are_kept(tmp_path: Path) -> None:
    device, cache = Device(), PlanCache(tmp_path)
    graph_on(device, cache)
    graph_on(device, cache)
    assert len(device.builds) == 1
    timings = cache.timings("none sm0", device.trt.__version__)
    assert cache.read(timings) == b"times"
    cache.path(DIGEST, "none sm0", device.trt.__version__, SIZES).unlink()
    cache.write(timings, b"older times")
    graph_on(device, cache)
    assert device.builds[1].get_timing_cache().data == b"older times"


def test_what_a_version_holds_on_the_device_goes_with_it(tmp_path: Path) -> None:
    device = Device()
    graph = graph_on(device, PlanCache(tmp_path))
    assert device.memory
    assert device.handles
    del graph
    gc.collect()
    assert (device.memory, device.handles) == ({}, set())
