"""Build one variant, in a process of its own: `python -m volary_trainer.variant_run FOLDER`.

Reads `order.json`, `rows.arrow`, `model.onnx` and `golden.json` of the folder; writes
`variant.onnx` and `result.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from volary_trainer.domain.table import Rows
from volary_trainer.variants import Variants


def main(folder: Path) -> None:
    """Build, judge, measure, write."""
    order: dict[str, Any] = json.loads((folder / "order.json").read_text())
    golden = json.loads((folder / "golden.json").read_text())
    try:
        train, validation = Rows.read(folder / "rows.arrow").split(
            order["start_us"], order["end_us"], order["validation_share"]
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None
    rows = np.asarray(golden["inputs"]["features"], np.float32)
    variants = Variants(folder / "model.onnx", train, validation, rows)
    graph = folder / "variant.onnx"
    record = variants.make(order["variant"], graph)
    measured = variants.measure(graph, order["decision_threshold"])
    (folder / "result.json").write_text(json.dumps({"variant": record, **measured}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
