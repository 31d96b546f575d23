"""A worse candidate, planted: the gate that the flights declare refuses it, as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from volary.trainer.v1.run_pb2 import Comparison
from volary_kit.documents import read_documents
from volary_trainer import process
from volary_trainer.comparison import _pair, _run
from volary_trainer.domain.table import Rows
from volary_workflows.judge.gate import GateVerdict, PairedLosses, judge_gate
from volary_workflows.retrain.declaration import plan_of

FLIGHTS = Path(__file__).parents[3] / "examples" / "flights"
ROWS, HELD_OUT = 12_000, 4_000
WRONG_SHARE = 0.3  # of the labels that the worse candidate learns from


def declared() -> Any:
    documents = read_documents(FLIGHTS / "training.yaml")
    training = next(each.data for each in documents if each.data["kind"] == "Training")
    return training["spec"], plan_of(training, project="default").gate


def world(seed: int) -> pa.Table:
    """Rows whose label depends on two of four features, about a fifth of them positive."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(ROWS, 4))
    odds = 1.5 * features[:, 0] - features[:, 1] - 1.8
    labels = (random.uniform(size=ROWS) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    times = pa.array(np.arange(ROWS) * 1_000, pa.timestamp("us", "UTC"))
    return pa.table(
        {"subject": [f"row-{i:05}" for i in range(ROWS)], "event_time": times, "known_at": times}
        | {f"f{i}": features[:, i] for i in range(4)}
        | {"label": labels}
    )


def prepare(folder: Path, table: pa.Table, spec: dict[str, Any], seed: int) -> None:
    """Write the order of a run as the example declares it, on the rows before the hold-out."""
    folder.mkdir()
    order = {
        "start_us": 0,
        "end_us": (ROWS - HELD_OUT) * 1_000,
        "network": spec["network"],
        "optimiser": spec["optimiser"],
        "seed": seed,
        "threads": 1,
        "validation_share": spec["evaluation"]["validation_share"],
        "decision_threshold": spec["evaluation"]["decision_threshold"],
        "variants": [],
    }
    (folder / "order.json").write_text(json.dumps(order))
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)


async def trained(folder: Path, table: pa.Table, spec: dict[str, Any], seed: int) -> bytes:
    """Train in a process of its own; return the graph."""
    prepare(folder, table, spec, seed)

    async def report(line: dict[str, Any]) -> None:
        assert line["of"] == spec["optimiser"]["epochs"]

    await process.train(folder, niceness=5, threads=1, timeout_s=100, report=report)
    return (folder / "model.onnx").read_bytes()


def with_wrong_labels(table: pa.Table) -> pa.Table:
    labels = table["label"].to_numpy().copy()
    wrong = np.random.default_rng(5).uniform(size=ROWS) < WRONG_SHARE
    labels[wrong] = 1 - labels[wrong]
    return table.set_column(table.column_names.index("label"), "label", pa.array(labels))


def judged(candidate: bytes, baseline: bytes, table: pa.Table, gate: Any) -> GateVerdict:
    """Compare on the hold-out, with its true labels, as the trainer and the gate do."""
    rows = Rows.of(table).between((ROWS - HELD_OUT) * 1_000, ROWS * 1_000)
    seen = Comparison(rows=len(rows))
    _pair(seen, rows, (_run(candidate, rows), _run(baseline, rows)), (0.5, 0.5))
    found = next(each for each in seen.differences if each.metric == gate.metric)
    losses = PairedLosses(
        found.metric, seen.rows, found.mean, found.variance, found.lower_bound, found.upper_bound
    )
    return judge_gate(gate, losses)


async def test_a_planted_worse_candidate_is_refused_and_an_equal_one_passes(
    tmp_path: Path,
) -> None:
    spec, gate = declared()
    table = world(seed=1)
    baseline = await trained(tmp_path / "baseline", table, spec, seed=1)
    equal = await trained(tmp_path / "equal", table, spec, seed=2)
    worse = await trained(tmp_path / "worse", with_wrong_labels(table), spec, seed=1)
    assert judged(equal, baseline, table, gate).reason_code == "NOT_INFERIOR"
    refused = judged(worse, baseline, table, gate)
    assert (refused.verdict, refused.reason_code) == ("FAIL", "INFERIOR")
    assert refused.low > gate.margin
