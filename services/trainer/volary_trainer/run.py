"""The run itself, in a process of its own: `python -m volary_trainer.run FOLDER`.

Reads `order.json` and `rows.arrow` of the folder; writes `model.onnx`, `weights.safetensors`,
`golden.json` and `result.json`, and one JSON object a line on standard output while it works. The
only module that imports torch.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.numpy import save
from torch import nn

from volary_trainer.domain import scores
from volary_trainer.domain.table import Rows

OPSET = 18
TOLERANCE = 1e-4  # of a probability; torch and onnxruntime sum in another order
SMALLEST_SCALE = 1e-6  # a feature that never varies stays 0
CHECK_ROWS = 4_096
GOLDEN_ROWS = 64
CALIBRATION_ROWS = 500  # below it a block of isotonic regression is a few rows


class Classifier(nn.Module):
    """`features` [N, D] FP32 -> `probability` [N, 1] FP32; scaling is part of the graph."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray, network: dict[str, Any]) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.from_numpy(scale))
        widths = [len(mean), *map(int, network["hidden"])]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(network["dropout"])]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the log odds, [N, 1]."""
        scaled = torch.clamp((features - self.mean) / self.scale, -8.0, 8.0)
        return self.layers(scaled)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.logits(features))


def main(folder: Path) -> None:
    """Train, export, check, write."""
    order = json.loads((folder / "order.json").read_text())
    rows = Rows.read(folder / "rows.arrow")
    _make_repeatable(order)
    try:
        train, validation = rows.split(
            order["start_us"], order["end_us"], order["validation_share"]
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    model = _fit(order, train, validation)
    result = _measure(model, order, train, validation)
    result["weights_hash"] = _write_weights(model, folder / "weights.safetensors")
    _export(model, rows, folder / "model.onnx", order)
    golden = _golden(model, validation if len(validation) else train)
    (folder / "golden.json").write_text(json.dumps(golden))
    result["variants"] = _variants(folder, order, train, validation, golden)
    (folder / "result.json").write_text(json.dumps(result))


def _variants(
    folder: Path, order: dict[str, Any], train: Rows, validation: Rows, golden: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write the declared variants as `PRECISION.onnx`; return what was found of each."""
    if not order["variants"]:
        return []
    from volary_trainer.variants import Variants

    rows = np.asarray(golden["inputs"]["features"], np.float32)
    variants = Variants(folder / "model.onnx", train, validation, rows)
    return [
        variants.make(declared, folder / f"{declared['precision']}.onnx")
        for declared in order["variants"]
    ]


def _make_repeatable(order: dict[str, Any]) -> None:
    torch.manual_seed(order["seed"])
    torch.set_num_threads(order["threads"])
    torch.use_deterministic_algorithms(True)


def _fit(order: dict[str, Any], train: Rows, validation: Rows) -> Classifier:
    mean = train.features.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = train.features.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > SMALLEST_SCALE, deviation, 1.0).astype(np.float32)
    model = Classifier(mean, scale, order["network"])
    features, labels = torch.from_numpy(train.features), torch.from_numpy(train.labels).float()
    options = order["optimiser"]
    adam = torch.optim.AdamW(
        model.parameters(), lr=options["learning_rate"], weight_decay=options["weight_decay"]
    )
    loss_of = nn.BCEWithLogitsLoss()
    for epoch in range(int(options["epochs"])):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(labels)).split(int(options["batch_size"])):
            adam.zero_grad(set_to_none=True)
            loss = loss_of(model.logits(features[rows]).squeeze(1), labels[rows])
            loss.backward()
            adam.step()
            total += float(loss.detach()) * len(rows)
        _report(epoch + 1, options["epochs"], total / len(labels), model, validation)
    return model


def _report(step: int, of: int, loss: float, model: Classifier, validation: Rows) -> None:
    if not np.isfinite(loss):
        raise SystemExit("the loss is not a number any more")
    points = {"train_loss": loss}
    if len(validation):
        measured = scores.metrics(_score(model, validation.features), validation.labels, 0.5)
        points |= {f"validation_{name}": measured[name] for name in ("log_loss", "auc")}
    print(json.dumps({"step": step, "of": of, "metrics": points}), flush=True)


def _score(model: Classifier, features: np.ndarray) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(features)).squeeze(1).double().numpy()


def _measure(
    model: Classifier, order: dict[str, Any], train: Rows, validation: Rows
) -> dict[str, Any]:
    scored = _score(model, validation.features)
    return {
        "metrics": scores.metrics(scored, validation.labels, order["decision_threshold"]),
        "score_distribution": scores.distribution(scored) if len(scored) else None,
        "calibration": _calibration(scored, validation.labels),
        "train_rows": len(train),
        "validation_rows": len(validation),
        "features": list(train.names),
    }


def _calibration(scored: np.ndarray, labels: np.ndarray) -> dict[str, list[float]] | None:
    """Return the calibration on rows that the weights were not fitted to; few rows have none."""
    return scores.calibration(scored, labels) if len(scored) >= CALIBRATION_ROWS else None


def _golden(model: Classifier, rows: Rows) -> dict[str, Any]:
    """Return rows spread over a window with what torch says of them, for whoever serves them."""
    places = np.unique(np.linspace(0, len(rows) - 1, GOLDEN_ROWS).astype(np.int64))
    features = rows.features[places]
    return {
        "inputs": {"features": features.tolist()},
        "outputs": {"probability": _score(model, features)[:, None].tolist()},
        "tolerance": TOLERANCE,
    }


def _write_weights(model: Classifier, path: Path) -> str:
    import hashlib

    tensors = {name: value.contiguous().numpy() for name, value in model.state_dict().items()}
    data = save(dict(sorted(tensors.items())))
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _export(model: Classifier, rows: Rows, path: Path, order: dict[str, Any]) -> None:
    """Write ONNX, and refuse it unless onnxruntime says what torch says."""
    sample = rows.features[:CHECK_ROWS]
    model.eval()
    torch.onnx.export(
        model,
        (torch.from_numpy(sample[:2]),),
        str(path),
        input_names=["features"],
        output_names=["probability"],
        dynamic_shapes={"features": {0: torch.export.Dim("rows", min=1, max=1 << 20)}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    exported = np.asarray(session.run(None, {"features": sample})[0], dtype=np.float64).ravel()
    expected, threshold = _score(model, sample), order["decision_threshold"]
    clear = np.abs(expected - threshold) > TOLERANCE
    same = (exported > threshold) == (expected > threshold)
    if np.abs(exported - expected).max() > TOLERANCE or not same[clear].all():
        raise SystemExit("the exported graph does not say what the model says")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
