"""What a replica needs of a version: its graph and what was registered beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Description:
    """What inference needs to know of a version beside its graph."""

    digest: str
    feature_set: str = ""
    schema_hash: str = ""
    golden_digest: str = ""
    serving_digest: str = ""
    calibration_digest: str = ""
    precision: str = ""  # empty: as trained
    pipeline: Mapping[str, Any] | None = None  # the steps that the graph was composed of


@dataclass(frozen=True)
class Reading:
    """How to read the graph's bytes once more from this replica's disk; their digest is checked."""

    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Package:
    """A version's graph, as bytes whose digest was checked, and what belongs to it."""

    description: Description
    graph: bytes
    golden: Mapping[str, Any] | None = None
    serving: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    reading: Reading | None = None
