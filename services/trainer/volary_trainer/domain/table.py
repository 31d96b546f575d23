"""A training set as arrays, split by time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# columns that are not features; see FeaturesService.ReadTrainingSet
NOT_FEATURES = ("subject", "event_time", "known_at", "label")


@dataclass(frozen=True)
class Rows:
    """Features [N, D] FP32, labels [N] of 0 and 1, event times [N] in UTC microseconds."""

    names: tuple[str, ...]
    features: NDArray[np.float32]
    labels: NDArray[np.float64]
    times_us: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Read the columns; rows are sorted by time, then subject, so that order never varies."""
        table = table.sort_by([("event_time", "ascending"), ("subject", "ascending")])
        names = tuple(name for name in table.column_names if name not in NOT_FEATURES)
        columns = [table[name].to_numpy().astype(np.float32) for name in names]
        return cls(
            names,
            np.ascontiguousarray(np.column_stack(columns)),
            table["label"].to_numpy().astype(np.float64),
            table["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of one Arrow IPC stream."""
        with pa.memory_map(str(path)) as file:
            return cls.of(pa.ipc.open_stream(file).read_all())

    def __len__(self) -> int:
        return len(self.labels)

    def between(self, start_us: int, end_us: int) -> Self:
        """Return the rows with start <= time < end."""
        kept = (self.times_us >= start_us) & (self.times_us < end_us)
        return type(self)(self.names, self.features[kept], self.labels[kept], self.times_us[kept])

    def split(self, start_us: int, end_us: int, validation_share: float) -> tuple[Self, Self]:
        """Return training and validation rows of a window: its latest part is for validation.

        Raises ValueError for a window of fewer than two rows.
        """
        window = self.between(start_us, end_us)
        if len(window) < 2:
            raise ValueError("the training window has no rows")
        cut = int(window.times_us[int(len(window) * (1 - validation_share))])
        return window.between(start_us, cut), window.between(cut, end_us)
