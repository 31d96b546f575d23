from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.domain.batching import RunFailed
from volary_inference.domain.signatures import TensorSpec
from volary_inference.domain.warming import GoldenRows, warm
from volary_kit.clock import SystemClock
from volary_kit.errors import FailedPrecondition, InvalidArgument

from . import graphs


def test_a_graph_that_the_check_refuses_never_reaches_the_runtime() -> None:
    with pytest.raises(InvalidArgument) as caught:
        OnnxGraph(b"\x80\x04\x95pickle")
    assert caught.value.reason == "ARTIFACT_REFUSED"


def test_a_graph_tells_its_signature_and_runs() -> None:
    graph = OnnxGraph(graphs.sigmoid_sum(width=2))
    assert graph.signature.inputs == (TensorSpec("features", "FP32", (-1, 2)),)
    assert graph.signature.outputs == (TensorSpec("probability", "FP32", (-1, 1)),)
    rows = np.array([[1, -1], [0, 2]], np.float32)
    expected = 1 / (1 + np.exp(-np.array([[0.0], [2.0]])))
    np.testing.assert_allclose(graph.run({"features": rows})["probability"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        (TensorProto.BFLOAT16, np.array([[0x3F80, 0x7F80]], np.uint16)),
        (TensorProto.FLOAT16, np.array([[1.5, -2]], np.float16)),
        (TensorProto.INT8, np.array([[-128, 127]], np.int8)),
        (TensorProto.UINT64, np.array([[0, 2**64 - 1]], np.uint64)),
        (TensorProto.BOOL, np.array([[True, False]])),
        (TensorProto.STRING, np.array([[b"caf\xc3\xa9", b""]], object)),
    ],
)
def test_every_datatype_goes_through_unchanged(kind: int, array: np.ndarray) -> None:
    out = OnnxGraph(graphs.identity(kind, [None, 2])).run({"x": array})["y"]
    assert out.dtype == array.dtype
    assert out.tolist() == array.tolist()


def test_a_run_that_fails_says_so() -> None:
    graph = OnnxGraph(graphs.gather())
    assert graph.run({"x": np.array([2])})["y"].tolist() == [30.0]
    with pytest.raises(RunFailed):
        graph.run({"x": np.array([3])})


def test_warming_measures_each_batch_size_and_holds_the_golden_rows() -> None:
    graph = OnnxGraph(graphs.sigmoid_sum(width=1))
    document = {"inputs": {"features": [[0.0]]}, "outputs": {"probability": [[0.5]]}}
    golden = GoldenRows.from_document(document, graph.signature)
    times = warm(graph, graph.signature, 8, SystemClock(), golden)
    assert times.predict_s(8, SystemClock().monotonic_s()) > 0
    wrong = GoldenRows.from_document(
        {**document, "outputs": {"probability": [[0.6]]}}, graph.signature
    )
    with pytest.raises(FailedPrecondition) as caught:
        warm(graph, graph.signature, 8, SystemClock(), wrong)
    assert caught.value.reason == "GOLDEN_MISMATCH"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"inputs": {}, "outputs": {}},
        {"inputs": {"other": [[1]]}, "outputs": {"probability": [[1]]}},
        {"inputs": {"features": [[1, 2]]}, "outputs": {"probability": [[1]]}},
        {"inputs": {"features": "x"}, "outputs": {"probability": [[1]]}},
        {"inputs": [], "outputs": 3},
    ],
)
def test_golden_rows_that_do_not_fit_are_refused(document: dict) -> None:
    signature = OnnxGraph(graphs.sigmoid_sum(width=1)).signature
    with pytest.raises(InvalidArgument) as caught:
        GoldenRows.from_document(document, signature)
    assert caught.value.reason == "GOLDEN_ROWS_INVALID"
