"""The run as a process: what it writes, and that it writes the same again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from volary_kit.errors import DeadlineExceeded, FailedPrecondition
from volary_trainer import process, variants, work
from volary_trainer.domain import scores

from .rows import ROWS, write_rows

ORDER: dict[str, Any] = {
    "start_us": 0,
    "end_us": ROWS * 1_000,
    "network": {"hidden": [8], "dropout": 0.1},
    "optimiser": {"learning_rate": 0.02, "weight_decay": 0.0, "batch_size": 128, "epochs": 6},
    "seed": 7,
    "threads": 1,
    "validation_share": 0.2,
    "decision_threshold": 0.5,
    "variants": [],
}


def prepare(folder: Path, order: dict[str, Any]) -> None:
    folder.mkdir()
    write_rows(folder)
    (folder / "order.json").write_text(json.dumps(order))


async def train(
    folder: Path, order: dict[str, Any], timeout_s: float = 120
) -> list[dict[str, Any]]:
    prepare(folder, order)
    lines: list[dict[str, Any]] = []

    async def report(line: dict[str, Any]) -> None:
        lines.append(line)

    await process.train(folder, niceness=5, threads=1, timeout_s=timeout_s, report=report)
    return lines


async def test_the_same_order_gives_the_same_weights_and_another_seed_others(
    tmp_path: Path,
) -> None:
    lines = await train(tmp_path / "a", ORDER)
    await train(tmp_path / "b", ORDER)
    await train(tmp_path / "c", ORDER | {"seed": 8})

    a, b, c = (json.loads((tmp_path / n / "result.json").read_text()) for n in "abc")
    weights = (tmp_path / "a" / "weights.safetensors").read_bytes()
    assert a["weights_hash"] == b["weights_hash"] == hashlib.sha256(weights).hexdigest()
    assert a["weights_hash"] != c["weights_hash"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert a["metrics"]["auc"] > 0.95
    assert a["validation_rows"] == ROWS * 0.2

    assert sum(a["score_distribution"]["counts"]) == a["validation_rows"]
    session = onnxruntime.InferenceSession(str(tmp_path / "a" / "model.onnx"))
    golden = json.loads((tmp_path / "a" / "golden.json").read_text())
    rows = np.array(golden["inputs"]["features"], np.float32)
    (said,) = session.run(["probability"], {"features": rows})
    assert len(rows) == 64
    np.testing.assert_allclose(
        np.asarray(said), golden["outputs"]["probability"], rtol=0, atol=golden["tolerance"]
    )

    (tensor,) = session.get_inputs()
    assert (tensor.name, tensor.shape[1]) == ("features", 2)
    sample = np.array([[3, 0], [-3, 0], [0, 1e9]], dtype=np.float32)
    scored = np.asarray(session.run(["probability"], {"features": sample})[0])
    assert scored.shape == (3, 1)
    assert scored[0, 0] > 0.8 > 0.2 > scored[1, 0]
    assert np.isfinite(scored).all()


async def test_an_empty_window_fails_with_the_runs_own_word(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no rows") as failure:
        await train(tmp_path / "a", ORDER | {"start_us": ROWS * 1_000, "end_us": ROWS * 2_000})
    assert failure.value.reason == "RUN_FAILED"


async def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        await train(tmp_path / "a", ORDER, timeout_s=0.5)


def test_auc_counts_ties_half() -> None:
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    assert scores.auc(np.array([0.1, 0.4, 0.4, 0.8]), labels) == pytest.approx(3.5 / 4)
    assert scores.auc(np.zeros(4), labels) == 0.5
    assert scores.auc(np.array([0.1, 0.2]), np.ones(2)) == 0.5


def test_a_distribution_counts_each_score_once_on_edges_of_equal_counts() -> None:
    scored = np.random.default_rng(1).uniform(size=2_000)
    found = scores.distribution(scored)
    assert found["counts"] == [100] * 20
    assert (found["minimum"], found["maximum"]) == (scored.min(), scored.max())
    assert scores.distribution(np.full(5, 0.25))["counts"] == [5]


def test_a_calibration_pools_rows_until_their_shares_rise() -> None:
    scored = np.array([0.1, 0.2, 0.3, 0.3, 0.8])
    labels = np.array([0.0, 1.0, 0.0, 0.0, 1.0])
    found = scores.calibration(scored, labels)
    # 0.2 (1 of 1) stands above 0.3 (0 of 2): the three are one block
    assert found["scores"] == pytest.approx([0.1, 0.8 / 3, 0.8])
    assert found["probabilities"] == pytest.approx([0.25, 0.375, 0.75])


def test_a_calibration_gives_back_the_shares_that_made_the_labels() -> None:
    random = np.random.default_rng(2)
    scored = random.uniform(size=20_000)
    found = scores.calibration(scored, (random.uniform(size=20_000) < scored**2).astype(float))
    assert (np.diff(found["scores"]) > 0).all()
    assert (np.diff(found["probabilities"]) >= 0).all()
    told = np.interp([0.3, 0.5, 0.9], found["scores"], found["probabilities"])
    np.testing.assert_allclose(told, [0.09, 0.25, 0.81], atol=0.05)


def test_differences_are_candidate_less_baseline() -> None:
    labels = np.array([1.0, 0.0, 1.0])
    better, worse = np.array([0.9, 0.1, 0.8]), np.array([0.6, 0.6, 0.4])
    found = {d.metric: d for d in scores.differences(better, worse, labels, (0.5, 0.5))}
    assert found["error"].mean == pytest.approx(-2 / 3)
    assert found["brier"].mean == pytest.approx(((0.01 + 0.01 + 0.04) - (0.16 + 0.36 + 0.36)) / 3)
    assert found["log_loss"].mean < 0 < found["log_loss"].variance


VARIANTS = [
    {"precision": "fp16", "tolerance": 0.02, "metric": "log_loss", "margin": 0.01},
    {"precision": "int8", "tolerance": 0.1, "metric": "brier", "margin": 0.01},
]


async def test_variants_are_built_gated_and_timed(tmp_path: Path) -> None:
    strict = {"precision": "int8", "tolerance": 1e-9, "metric": "log_loss", "margin": 0.01}
    await train(tmp_path / "a", ORDER | {"variants": VARIANTS})
    await train(tmp_path / "b", ORDER | {"variants": [strict]})
    found = json.loads((tmp_path / "a" / "result.json").read_text())["variants"]
    assert [(row["precision"], row["refusal"]) for row in found] == [("fp16", ""), ("int8", "")]
    for row in found:
        assert 0 < row["max_error"] <= row["tolerance"]
        assert row["loss"] - row["reference_loss"] <= row["margin"]
        assert row["speed_up"] > 0
    kinds = {name: operators(tmp_path / "a" / f"{name}.onnx") for name in ("fp16", "int8", "model")}
    assert "QuantizeLinear" in kinds["int8"] - kinds["model"]
    assert "Cast" in kinds["fp16"] - kinds["model"]
    # features in units that half precision cannot hold are scaled before they are halved
    far = np.array([[3, 1e6], [-3, -1e6]], np.float32)
    graphs = [tmp_path / "a" / f"{name}.onnx" for name in ("fp16", "model")]
    half, full = [
        np.asarray(onnxruntime.InferenceSession(str(path)).run(None, {"features": far})[0])
        for path in graphs
    ]
    np.testing.assert_allclose(half, full, rtol=0, atol=0.02)
    [refused] = json.loads((tmp_path / "b" / "result.json").read_text())["variants"]
    assert refused["refusal"].startswith("golden rows differ by")


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_what_is_not_a_number_passes_no_gate() -> None:
    nan = float("nan")
    declared = VARIANTS[0]
    assert variants._refusal(declared, 0.01, 0.0) == ""
    assert "tolerance" in variants._refusal(declared, nan, 0.0)
    assert "tolerance" in variants._refusal(declared, 0.03, 0.0)
    assert "log_loss is worse" in variants._refusal(declared, 0.01, 0.02)
    assert "log_loss is worse" in variants._refusal(declared, 0.01, nan)


def test_a_variant_that_did_not_pass_is_not_served() -> None:
    rows = [
        {"precision": "fp16", "refusal": "", "max_error": 0.1, "tolerance": 0.02},
        {"precision": "int8", "refusal": "worse", "max_error": 0.9, "tolerance": 0.1},
    ]
    work._require_served("fp32", {"variants": rows})
    work._require_served("fp16", {"variants": rows})
    with pytest.raises(FailedPrecondition) as caught:
        work._require_served("int8", {"variants": rows})
    assert caught.value.reason == "VARIANT_REFUSED"


def test_the_served_variants_golden_rows_have_its_tolerance(tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text(json.dumps({"tolerance": 1e-4}))
    result = {"variants": [{"precision": "int8", "tolerance": 0.1}]}
    assert json.loads(work._golden(tmp_path, "fp32", result))["tolerance"] == 1e-4
    assert json.loads(work._golden(tmp_path, "int8", result))["tolerance"] == pytest.approx(0.1001)
