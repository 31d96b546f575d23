"""The compiled module, where there is one: `services/inference/engine` builds it."""

from __future__ import annotations

import importlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import onnxruntime

NAME = "volary_inference_engine"
RUNTIME = "libonnxruntime.so.*"
WITHOUT_CARGO = "cargo is not there"  # how the build's own word begins


class Unavailable(Exception):
    """There is no native engine here; the text says what to do about it."""


class NotBuilt(Unavailable):
    """Nobody has tried to build it, for want of cargo; all others are worth a warning."""


class NativeStatistics(Protocol):
    """Counters of a version; totals are (count, seconds)."""

    success: tuple[int, float]
    failure: tuple[int, float]
    queue: tuple[int, float]
    run: tuple[int, float]
    rows: int
    last_us: int
    recent_queue_s: float
    by_batch_size: dict[int, tuple[int, float]]
    closings: dict[str, int]
    dropped: dict[str, int]


class NativeVersion(Protocol):
    """A version in the data plane: its session and its batching thread."""

    def calibrated(self, scores: Sequence[float]) -> list[float]: ...
    def declare(
        self,
        bands: Sequence[tuple[float | None, str, str]],
        has_tiers: bool,  # noqa: FBT001
    ) -> None: ...
    def note_in(self, journal: Path, offset: int) -> None: ...
    def start(self, name: str) -> None: ...
    def run(
        self,
        inputs: Sequence[tuple[Sequence[int], bytes]],
        rows: int,
        is_measured: bool,  # noqa: FBT001
    ) -> list[tuple[list[int], bytes]]: ...
    def close(self, within_s: float) -> bool: ...
    def statistics(self) -> NativeStatistics: ...


class DataPlane(Protocol):
    """The listener of the data port; see `engine/src/python.rs`."""

    def start(self, host: str, port: int) -> int: ...
    def set_stream_timeout(self, timeout_s: float) -> None: ...
    def stop(self, grace_s: float) -> None: ...
    def publish(
        self,
        versions: Sequence[tuple[str, str, int, str, NativeVersion]],
        production: Sequence[tuple[str, str, int]],
    ) -> None: ...
    def set_health(self, health: dict[str, bool]) -> None: ...
    def take_events(self, limit: int, wait_s: float) -> tuple[int, bytes]: ...
    def take_spans(self, limit: int, wait_s: float) -> tuple[int, bytes]: ...
    def take_dropped(self) -> tuple[int, int]: ...
    def queued_events(self) -> int: ...
    def take_counts(self) -> list[tuple[str, dict[str, int], list[int], float]]: ...
    def in_flight(self) -> int: ...


class NativeModule(Protocol):
    """What the compiled module offers."""

    NativeVersion: Any
    DataPlane: Any

    def open_runtime(self, path: str) -> None: ...


def load() -> NativeModule:
    """Import the module and open onnxruntime's library; raise Unavailable."""
    try:
        module = cast("NativeModule", importlib.import_module(NAME))
    except ImportError as error:
        raise _why(error) from error
    folder = Path(onnxruntime.__file__).parent / "capi"
    found = sorted(folder.glob(RUNTIME))
    if not found:
        raise Unavailable(f"{folder} has no {RUNTIME}")
    try:
        module.open_runtime(str(found[0]))
    except (AttributeError, RuntimeError) as error:
        raise Unavailable(f"{found[0].name} cannot be opened: {error}") from error
    return module


def _why(error: ImportError) -> Unavailable:
    """Return why there is no module: what its build left behind, else the import's own words."""
    note = Path(sysconfig.get_paths()["purelib"]) / f"{NAME}.why"
    try:
        text = note.read_text().strip()
    except OSError:
        text = f"it is not built: run services/inference/engine/build.py; {error}"
        return NotBuilt(text) if isinstance(error, ModuleNotFoundError) else Unavailable(text)
    return NotBuilt(text) if text.startswith(WITHOUT_CARGO) else Unavailable(text)
