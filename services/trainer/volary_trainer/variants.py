"""The same model with smaller numbers: built by onnxruntime's tools, gated, timed.

An fp16 variant computes in half precision behind FP32 inputs and outputs. An int8 variant holds
its weights and activations as QuantizeLinear/DequantizeLinear pairs in the graph, with ranges seen
on rows of the training window. A variant passes when the golden rows come out within a declared
tolerance and the evaluation's loss on the validation rows is not worse than by a declared margin.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from volary_trainer.domain import scores
from volary_trainer.domain.table import Rows

INPUT = "features"
CALIBRATION_ROWS, CALIBRATION_BATCH = 2_048, 256
TIMED_ROWS, TIMED_RUNS = 64, 200
ROUNDS = 5
SCALING, MULTIPLYING = ("Sub", "Div", "Clip", "Min", "Max"), ("Gemm", "MatMul")
LOSSES: dict[str, Callable[[scores.Floats, scores.Floats], scores.Floats]] = {
    "log_loss": scores.log_losses,
    "brier": scores.squared_errors,
}


@dataclass(frozen=True)
class Record:
    """What was found of a variant; `refusal` is empty for one that passed."""

    precision: str
    tolerance: float
    max_error: float
    metric: str
    loss: float
    reference_loss: float
    margin: float
    speed_up: float
    refusal: str


class Variants:
    """Builds and judges variants of one graph, on rows that the weights were not fitted to."""

    def __init__(self, graph: Path, train: Rows, validation: Rows, golden: np.ndarray) -> None:
        self._graph = graph
        self._train = train
        self._rows = validation if len(validation) else train
        self._golden = golden
        self._reference = _session(graph)

    def make(self, declared: dict[str, Any], path: Path) -> dict[str, Any]:
        """Write a variant to `path`; return its record."""
        BUILDERS[declared["precision"]](self._graph, path, self._train)
        session = _session(path)
        golden = np.abs(_run(session, self._golden) - _run(self._reference, self._golden))
        max_error = float(golden.max()) if np.isfinite(golden).all() else float("inf")
        loss, reference_loss = (
            self._loss(each, declared["metric"]) for each in (session, self._reference)
        )
        record = Record(
            precision=declared["precision"],
            tolerance=declared["tolerance"],
            max_error=max_error,
            metric=declared["metric"],
            loss=loss,
            reference_loss=reference_loss,
            margin=declared["margin"],
            speed_up=_speed_up(self._reference, session, self._rows.features),
            refusal=_refusal(declared, max_error, loss - reference_loss),
        )
        return asdict(record)

    def measure(self, path: Path, threshold: float) -> dict[str, Any]:
        """Return the metrics of a variant and what its scores are like, on the validation rows."""
        scored = _run(_session(path), self._rows.features)
        return {
            "metrics": scores.metrics(scored, self._rows.labels, threshold),
            "score_distribution": scores.distribution(scored),
        }

    def _loss(self, session: onnxruntime.InferenceSession, metric: str) -> float:
        scored = _run(session, self._rows.features)
        return float(LOSSES[metric](scored, self._rows.labels).mean())


def _refusal(declared: dict[str, Any], max_error: float, worse: float) -> str:
    """Say why a variant is not served, empty when it may be; NaN passes no gate."""
    if not max_error <= declared["tolerance"]:
        return f"golden rows differ by {max_error:.3g}, tolerance {declared['tolerance']:.3g}"
    if not worse <= declared["margin"]:
        return f"{declared['metric']} is worse by {worse:.3g}, margin {declared['margin']:.3g}"
    return ""


def _speed_up(
    reference: onnxruntime.InferenceSession,
    variant: onnxruntime.InferenceSession,
    features: np.ndarray,
) -> float:
    """Return how often the variant runs while the reference runs once, batches in turn.

    The best of several rounds of each: another process on the core only ever adds time.
    """
    rows = np.resize(features, (TIMED_ROWS, features.shape[1]))
    best = {id(each): float("inf") for each in (reference, variant)}
    for _ in range(ROUNDS):
        for session in (reference, variant):
            began_s = time.perf_counter()
            for _ in range(TIMED_RUNS // ROUNDS):
                session.run(None, {INPUT: rows})
            best[id(session)] = min(best[id(session)], time.perf_counter() - began_s)
    return best[id(reference)] / best[id(variant)]


def _half(graph: Path, path: Path, _train: Rows) -> None:
    # features come in units that half precision may not hold: they are scaled in FP32
    model = convert_float_to_float16(
        onnx.load(graph), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SCALING]
    )
    path.write_bytes(model.SerializeToString(deterministic=True))


def _int8(graph: Path, path: Path, train: Rows) -> None:
    # the tools warn of a step of their own that this graph needs not, on the root logger
    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(
        graph,
        path,
        _Calibration(train.features),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(MULTIPLYING),
    )


BUILDERS: dict[str, Callable[[Path, Path, Rows], None]] = {"fp16": _half, "int8": _int8}


class _Calibration(CalibrationDataReader):
    """Rows spread over the training window: what ranges activations take."""

    def __init__(self, features: np.ndarray) -> None:
        places = np.linspace(0, len(features) - 1, min(CALIBRATION_ROWS, len(features)))
        rows = features[places.astype(np.int64)]
        self._batches: Iterator[np.ndarray] = iter(
            [rows[at : at + CALIBRATION_BATCH] for at in range(0, len(rows), CALIBRATION_BATCH)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the next batch, None after the last."""
        rows = next(self._batches, None)
        return None if rows is None else {INPUT: rows}


def _session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, rows: np.ndarray) -> scores.Floats:
    (scored, *_) = session.run(None, {INPUT: rows})
    return np.asarray(scored, dtype=np.float64).ravel()
