"""What could be known of a flight when it left, recounted from the files by brute force."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

REPLAY = Path(__file__).parents[2] / "examples" / "flights" / "replay.py"
WINDOW_US, HOP_US = 3 * 3_600_000_000, 300_000_000  # three hours, its tail on five minutes
Instants = npt.NDArray[np.int64]


def replay_module() -> ModuleType:
    """Return the example's own reading of its files."""
    spec = importlib.util.spec_from_file_location("flights_replay", REPLAY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for themselves there
    spec.loader.exec_module(module)
    return module


class Landings:
    """The instants at which flights before `end` landed, by the airport that they left from."""

    def __init__(self, end: datetime) -> None:
        replay = replay_module()
        zones = {row["faa"]: row["tzone"] for row in replay._table("airports.csv")}
        zones |= replay.ZONES_NOT_LISTED
        landed: defaultdict[str, list[int]] = defaultdict(list)
        self.origins: dict[str, str] = {}
        for row in replay._table("flights.csv.zip"):
            if row["time_hour"] >= end.isoformat():
                continue
            self.origins[replay.subject_of(row)] = row["origin"]
            leaves = replay._utc(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
            lands = replay._landing(row, leaves, zones[row["dest"]])
            if lands is not None:
                landed[row["origin"]].append(round(lands.timestamp() * 1e6))
        self._known = {origin: np.sort(np.array(known)) for origin, known in landed.items()}

    def counted(self, subjects: list[str], asked_us: Instants, *, ahead_us: int = 0) -> Instants:
        """Return how many had landed within the window before each instant.

        `ahead_us` is how far a read would look into the future: 0 for an honest one.
        """
        opens_us = (asked_us - WINDOW_US) // HOP_US * HOP_US
        counts = np.zeros(len(subjects), dtype=np.int64)
        origins = np.array([self.origins[subject] for subject in subjects])
        for origin, known in self._known.items():
            mine = origins == origin
            until = np.searchsorted(known, asked_us[mine] + ahead_us, side="left")
            counts[mine] = until - np.searchsorted(known, opens_us[mine], side="left")
        return counts
