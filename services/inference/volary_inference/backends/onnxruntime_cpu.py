"""onnxruntime on the CPU: one thread a session, graphs from memory only."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from volary_kit.errors import InvalidArgument
from volary_kit.graphs import check_graph, refused

from volary_inference.domain.batching import RunFailed
from volary_inference.domain.signatures import VARIES, Signature, TensorSpec

BACKEND = "onnxruntime-cpu"
PLATFORM = "onnxruntime_onnx"
BF16 = int(onnx.TensorProto.BFLOAT16)
TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}


class OnnxGraph:
    """A loaded graph: its signature, and runs of arrays by name.

    onnxruntime's strings are UTF-8 text: a BYTES input that is not is refused.
    """

    backend, platform = BACKEND, PLATFORM

    def __init__(self, data: bytes) -> None:
        check_graph(data)
        try:
            self._session = self._opened(data)
        # the bindings raise a family of exceptions that share no base but this
        except Exception as error:
            raise refused(f"onnxruntime cannot load it: {_first_line(error)}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.signature = Signature(_specs(inputs), _specs(outputs))
        self._outputs = [spec.name for spec in self.signature.outputs]
        self._types = {spec.name: spec.datatype for spec in self.signature.inputs}
        datatypes = {spec.datatype for spec in (*self.signature.inputs, *self.signature.outputs)}
        self._has_text, self._has_bf16 = "BYTES" in datatypes, "BF16" in datatypes
        if self._has_text and self._has_bf16:
            raise refused("onnxruntime's bindings cannot pass text and BF16 in one run")

    @classmethod
    def _opened(cls, data: bytes) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(
            data, session_options(), providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name; raise RunFailed when the graph does."""
        if self._has_text:
            feeds = {name: _decoded(name, array) for name, array in feeds.items()}
        try:
            values = self._run_bf16(feeds) if self._has_bf16 else self._run_plain(feeds)
        except Exception as error:  # see above: the bindings' exceptions share no base
            raise RunFailed(_first_line(error)) from error
        return dict(zip(self._outputs, values, strict=True))

    def _run_plain(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        values: list[Any] = list(self._session.run(self._outputs, dict(feeds)))
        return [_encoded(array) for array in values] if self._has_text else values

    def _run_bf16(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run with what numpy has no type for: BF16 goes in and comes out by its bits."""
        given = {name: self._to_value(name, array) for name, array in feeds.items()}
        return [_to_array(value) for value in self._session.run_with_ort_values(None, given)]

    def _to_value(self, name: str, array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array)
        if self._types[name] == "BF16":
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BF16)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def session_options() -> onnxruntime.SessionOptions:
    """Return one thread, no spinning: the batching thread is the only one that runs a session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _specs(nodes: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(node.name, _datatype(node), _shape(node.shape)) for node in nodes)


def _datatype(node: Any) -> str:
    found = TYPES.get(node.type)
    if found is None:
        raise refused(f"{node.name} is {node.type}, which no V2 datatype stands for")
    return found


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size >= 0 else VARIES for size in shape)


def _decoded(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "O":
        return array
    try:
        texts = [each.decode() for each in array.ravel()]
    except UnicodeDecodeError:
        raise InvalidArgument("TEXT_NOT_UTF8", f"{name} must hold UTF-8 text") from None
    return np.array(texts, dtype=object).reshape(array.shape)


def _encoded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "OU":
        return array
    encoded = np.empty(array.size, dtype=object)
    encoded[:] = [str(each).encode() for each in array.ravel()]
    return encoded.reshape(array.shape)


def _to_array(value: Any) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = value.shape()
    size = int(np.prod(shape, dtype=np.int64)) * 2
    bits = np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.dtype("<u2"))
    return bits.reshape(shape)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
