"""Before a version is ready: it runs each batch size once and reproduces its golden rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from volary_kit.clock import Clock
from volary_kit.errors import FailedPrecondition, InvalidArgument

from volary_inference.domain.batching import Arrays, RunFailed, Runner
from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.run_times import RunTimes
from volary_inference.domain.signatures import VARIES, Signature, TensorSpec

MEASURED_RUNS = 2
DEFAULT_TOLERANCE = 1e-4  # float32 of torch against float32 of onnxruntime: 1.3e-5 was seen


@dataclass(frozen=True)
class GoldenRows:
    """Inputs and the outputs that they must give, by tensor name."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tolerance: float = DEFAULT_TOLERANCE

    @classmethod
    def from_document(cls, document: Mapping[str, object], signature: Signature) -> GoldenRows:
        """Read `{"inputs": {name: rows}, "outputs": {name: rows}, "tolerance": t}`."""
        try:
            return cls(
                _arrays(document["inputs"], signature.inputs),
                _arrays(document["outputs"], signature.outputs),
                float(document.get("tolerance", DEFAULT_TOLERANCE)),  # pyright: ignore[reportArgumentType]
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            text = "the golden rows do not fit the version's signature"
            raise InvalidArgument("GOLDEN_ROWS_INVALID", text) from None


def warm(
    runner: Runner,
    signature: Signature,
    max_rows: int,
    clock: Clock,
    golden: GoldenRows | None,
) -> RunTimes:
    """Run every batch bucket after the golden rows; return how long each took at its fastest.

    Raises FailedPrecondition `GOLDEN_MISMATCH` or `WARM_UP_FAILED`.
    """
    try:
        if golden is not None:
            check_golden(runner, golden)
        times = RunTimes()
        for rows in batch_sizes(signature, max_rows):
            feeds = feeds_of(signature, rows, golden)
            runner.run(feeds)  # the first run of a size reserves memory
            seconds = min(_timed_s(runner, feeds, clock) for _ in range(MEASURED_RUNS))
            times.record(rows, seconds, clock.monotonic_s())
    except (RunFailed, InvalidArgument) as error:
        text = "the version failed its first run"
        raise FailedPrecondition("WARM_UP_FAILED", text) from error
    return times


def _timed_s(runner: Runner, feeds: Arrays, clock: Clock) -> float:
    began_s = clock.monotonic_s()
    runner.run(feeds)
    return clock.monotonic_s() - began_s


def check_golden(runner: Runner, golden: GoldenRows) -> None:
    """Raise FailedPrecondition `GOLDEN_MISMATCH` unless the golden rows come out as recorded."""
    outputs = runner.run(golden.inputs)
    for name, expected in golden.outputs.items():
        actual = outputs.get(name)
        if (
            actual is None
            or actual.shape != expected.shape
            or not _is_close(actual, expected, golden.tolerance)
        ):
            raise FailedPrecondition(
                "GOLDEN_MISMATCH", "the golden rows come out differently here", {"output": name}
            )


def _is_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    if actual.shape != expected.shape:
        return False
    if actual.dtype.kind != "f":
        return bool((actual == expected).all())
    return bool(np.allclose(actual, expected, rtol=0.0, atol=tolerance))


def _arrays(rows: object, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    known = {spec.name: spec for spec in specs}
    if not isinstance(rows, Mapping) or not rows or rows.keys() - known.keys():
        raise ValueError("unknown tensors")
    arrays: dict[str, np.ndarray] = {}
    for name, values in rows.items():
        arrays[name] = np.array(values, DATATYPES[known[name].datatype].dtype)
        if not known[name].fits(arrays[name].shape):
            raise ValueError("another shape")
    return arrays


def batch_sizes(signature: Signature, max_rows: int) -> Iterator[int]:
    """Return the batch sizes that a version is warmed with."""
    return buckets(max_rows) if signature.is_batched else iter((1,))


def buckets(max_rows: int) -> Iterator[int]:
    """Yield the batch sizes that are run before a version is ready: powers of two, and the most."""
    rows = 1
    while rows < max_rows:
        yield rows
        rows *= 2
    yield max_rows


def feeds_of(signature: Signature, rows: int, golden: GoldenRows | None) -> dict[str, np.ndarray]:
    """Return inputs of so many rows: the golden ones over and over, zeros without."""
    if golden is not None and golden.inputs.keys() == {spec.name for spec in signature.inputs}:
        return {name: _repeated(array, rows) for name, array in golden.inputs.items()}
    return {spec.name: _zeros(spec, rows) for spec in signature.inputs}


def _repeated(array: np.ndarray, rows: int) -> np.ndarray:
    return np.resize(array, (rows, *array.shape[1:]))


def _zeros(spec: TensorSpec, rows: int) -> np.ndarray:
    first = rows if spec.shape[:1] == (VARIES,) else spec.shape[0] if spec.shape else 1
    shape = (first, *(1 if size == VARIES else size for size in spec.shape[1:]))
    kind = DATATYPES[spec.datatype]
    return np.full(shape, b"", object) if kind.is_bytes else np.zeros(shape, kind.dtype)
