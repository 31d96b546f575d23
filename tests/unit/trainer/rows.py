"""Rows to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

ROWS = 3_000


def write_rows(folder: Path) -> None:
    """Rows whose label depends on the first feature alone."""
    random = np.random.default_rng(3)
    first, second = random.normal(size=ROWS), random.normal(5, 100, size=ROWS)
    label = (first + random.normal(0, 0.3, size=ROWS) > 0).astype(np.float64)
    table = pa.table(
        {
            "subject": [f"row-{i:05}" for i in range(ROWS)],
            "event_time": pa.array(np.arange(ROWS) * 1_000, pa.timestamp("us", "UTC")),
            "known_at": pa.array(np.arange(ROWS) * 1_000 + 1, pa.timestamp("us", "UTC")),
            "first": first,
            "second": second,
            "label": label,
        }
    )
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
