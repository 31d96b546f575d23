"""TensorRT 11: an engine a version, built from its ONNX, one profile and CUDA graph a batch size.

Written against the signatures of `tensorrt_bindings` 11.2.1.2 and `cuda.bindings.runtime` 13; see
docs/status.md for what has been run. Neither is imported where there is no GPU. Networks are
strongly typed: precision is what the graph says, so fp16 and int8 are artifacts of their own.
Nothing falls back to the CPU by itself: a version that cannot be built is refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import re
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from volary_kit.errors import FailedPrecondition

from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.backends.onnxruntime_cuda import CudaGraph
from volary_inference.domain.batching import Arrays, RunFailed
from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.signatures import VARIES, Signature, TensorSpec

BACKEND = "tensorrt"
PLATFORM = "tensorrt_plan"
DRIVER = Path("/proc/driver/nvidia/version")
WORKSPACE_BYTES = 1 << 30
SEAL_BYTES = 32  # a plan on disk begins with the SHA-256 of the rest
SUPPORTED = frozenset({"BOOL", "FP16", "FP32", "INT8", "UINT8", "INT32", "INT64"})


@dataclass(frozen=True)
class Bindings:
    """The two modules, imported, and the device that they found."""

    trt: Any
    cuda: Any
    gpu: str

    @classmethod
    def found(cls, driver: Path = DRIVER) -> Bindings:
        """Import what there is; raise FailedPrecondition `TENSORRT_UNAVAILABLE` with the cause."""
        if not driver.exists():
            raise _unavailable("there is no GPU here")
        try:
            trt = importlib.import_module("tensorrt_bindings")
            cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise _unavailable(f"{error.name or 'a library'} is not installed") from error
        try:
            properties = done(cuda.cudaGetDeviceProperties(0))
        except RunFailed as error:
            raise _unavailable(str(error)) from error
        name = bytes(properties.name).partition(b"\0")[0].decode("ascii", "replace")
        return cls(trt, cuda, f"{name} sm{properties.major}{properties.minor}")


class PlanCache:
    """Built engines on disk, by digest, GPU, TensorRT and batch sizes; sealed by their hash.

    Beside them how long kernels took on a GPU, which the next build on it need not find out again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: str, gpu: str, version: str, buckets: tuple[int, ...]) -> Path:
        """Return where an engine is kept."""
        return self._named(".plan", digest, gpu, version, *map(str, buckets))

    def timings(self, gpu: str, version: str) -> Path:
        """Return where the times of kernels are kept."""
        return self._named(".timings", gpu, version)

    def _named(self, suffix: str, *parts: str) -> Path:
        return self._folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', '_'.join(parts))}{suffix}"

    def read(self, path: Path) -> bytes | None:
        """Return what is kept, None where nothing is or its bytes are not what was written."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        seal, plan = data[:SEAL_BYTES], data[SEAL_BYTES:]
        return plan if hashlib.sha256(plan).digest() == seal else None

    def write(self, path: Path, plan: bytes) -> None:
        """Keep an engine, or times."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{uuid.uuid4().hex}.draft")
        draft.write_bytes(hashlib.sha256(plan).digest() + plan)
        draft.replace(path)


class TensorRtGraph:
    """An engine with the signature of its ONNX graph; `run` pads to the next batch size."""

    backend, platform = BACKEND, PLATFORM
    disagreement = "TENSORRT_DISAGREES"

    def __init__(
        self, data: bytes, digest: str, buckets: tuple[int, ...], cache: PlanCache, found: Bindings
    ) -> None:
        self.reference = OnnxGraph(data)
        self.signature = self.reference.signature
        require_supported(self.signature)
        self._found, self._buckets = found, buckets
        path = cache.path(digest, found.gpu, found.trt.__version__, buckets)
        self._logger = found.trt.Logger(found.trt.ILogger.WARNING)
        plan = cache.read(path)
        if plan is None:
            plan = self._build(data, cache)
            cache.write(path, plan)
        self._runtime = found.trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise FailedPrecondition("TENSORRT_REFUSED", "the engine cannot be loaded on this GPU")
        self._stream = done(found.cuda.cudaStreamCreate())
        weakref.finalize(self, found.cuda.cudaStreamDestroy, self._stream)
        self._lanes = {
            rows: _Lane(self._engine, index, rows, self.signature, found, self._stream)
            for index, rows in enumerate(buckets)
        }

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return every output by name; raise RunFailed when the device does."""
        rows, most = next(iter(feeds.values())).shape[0], self._buckets[-1]
        if rows > most:
            starts = range(0, rows, most)
            parts = [self.run({k: v[i : i + most] for k, v in feeds.items()}) for i in starts]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        bucket = next(size for size in self._buckets if size >= rows)
        return self._lanes[bucket].run(feeds, rows)

    def _build(self, data: bytes, cache: PlanCache) -> bytes:
        """Build a plan with a profile a batch size; raise FailedPrecondition `TENSORRT_REFUSED`."""
        trt = self._found.trt
        builder = trt.Builder(self._logger)
        flag = int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(1 << flag)
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(data):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise FailedPrecondition("TENSORRT_REFUSED", (errors or ["it does not parse"])[0][:200])
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.clear_flag(trt.BuilderFlag.TF32)  # FP32 means FP32, as on the CPU
        for rows in self._buckets:
            profile = builder.create_optimization_profile()
            for spec in self.signature.inputs:
                shape = trt.Dims(shape_of(spec, rows))
                profile.set_shape(spec.name, shape, shape, shape)
            config.add_optimization_profile(profile)
        kept = cache.timings(self._found.gpu, trt.__version__)
        timings = config.create_timing_cache(cache.read(kept) or b"")
        config.set_timing_cache(timings, False)  # of another device they would be wrong
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise FailedPrecondition("TENSORRT_REFUSED", "TensorRT cannot build the graph")
        cache.write(kept, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)


class _Lane:
    """One batch size: a context, pinned and device buffers, and a CUDA graph of the whole trip."""

    def __init__(
        self,
        engine: Any,
        profile: int,
        rows: int,
        signature: Signature,
        found: Bindings,
        stream: Any,
    ) -> None:
        self._cuda, self._stream, self._signature = found.cuda, stream, signature
        self._context = engine.create_execution_context()
        if not self._context.set_optimization_profile_async(profile, int(stream)):
            raise FailedPrecondition("TENSORRT_REFUSED", f"no profile for {rows} rows")
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[str, int] = {}
        for spec in signature.inputs:
            self._context.set_input_shape(spec.name, shape_of(spec, rows))
        for spec in (*signature.inputs, *signature.outputs):
            shape = tuple(self._context.get_tensor_shape(spec.name))
            self._allocate(spec, shape)
        self._graph = self._captured()

    def run(self, feeds: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        for name, array in feeds.items():
            self._host[name][:rows] = array
            self._host[name][rows:] = 0  # a row of zeros is nobody's
        done(self._cuda.cudaGraphLaunch(self._graph, self._stream))
        done(self._cuda.cudaStreamSynchronize(self._stream))
        return {spec.name: self._host[spec.name][:rows].copy() for spec in self._signature.outputs}

    def _allocate(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        dtype = DATATYPES[spec.datatype].dtype
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        pinned = int(done(self._cuda.cudaHostAlloc(size, 0)))
        weakref.finalize(self, self._cuda.cudaFreeHost, pinned)
        memory = (ctypes.c_byte * size).from_address(pinned)
        self._host[spec.name] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        self._device[spec.name] = int(done(self._cuda.cudaMalloc(size)))
        weakref.finalize(self, self._cuda.cudaFree, self._device[spec.name])
        if not self._context.set_tensor_address(spec.name, self._device[spec.name]):
            raise FailedPrecondition("TENSORRT_REFUSED", f"{spec.name[:64]} has no place")

    def _captured(self) -> Any:
        """Run once, which settles lazy work, then record in, run and out as one CUDA graph."""
        self._enqueue()
        done(self._cuda.cudaStreamSynchronize(self._stream))
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        done(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue()
        recorded = done(self._cuda.cudaStreamEndCapture(self._stream))
        graph = done(self._cuda.cudaGraphInstantiate(recorded, 0))
        done(self._cuda.cudaGraphDestroy(recorded))
        weakref.finalize(self, self._cuda.cudaGraphExecDestroy, graph)
        return graph

    def _enqueue(self) -> None:
        kinds = self._cuda.cudaMemcpyKind
        for spec in self._signature.inputs:
            host, device = self._host[spec.name], self._device[spec.name]
            self._copy(device, host.ctypes.data, host.nbytes, kinds.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(self._stream)):
            raise RunFailed("TensorRT refused to run")
        for spec in self._signature.outputs:
            host, device = self._host[spec.name], self._device[spec.name]
            self._copy(host.ctypes.data, device, host.nbytes, kinds.cudaMemcpyDeviceToHost)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        done(self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream))


def require_supported(signature: Signature) -> None:
    """Raise FailedPrecondition `TENSORRT_UNSUPPORTED` for what no lane can carry."""
    for spec in (*signature.inputs, *signature.outputs):
        if spec.datatype not in SUPPORTED:
            raise _unsupported(f"{spec.name[:64]} is {spec.datatype}")
    for spec in signature.inputs:
        if spec.shape[:1] != (VARIES,) or VARIES in spec.shape[1:]:
            raise _unsupported(f"{spec.name[:64]} varies in more than its rows")
    if not signature.inputs or not signature.is_batched:
        raise _unsupported("the graph has no rows")


def require_agreement(
    graph: TensorRtGraph | CudaGraph, inputs: Mapping[str, np.ndarray], tolerance: float
) -> None:
    """Raise FailedPrecondition `..._DISAGREES` unless the device says what the CPU says."""
    here, there = graph.run(inputs), graph.reference.run(inputs)
    for name, expected in there.items():
        if not np.allclose(here[name], expected, rtol=0.0, atol=tolerance):
            raise FailedPrecondition(
                graph.disagreement,
                "the GPU's outputs are not the CPU's on the golden rows",
                {"output": name},
            )


def shape_of(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    """Return an input's shape at one batch size."""
    return (rows, *spec.shape[1:])


def done(result: Any) -> Any:
    """Return what a CUDA call gives beside its error; raise RunFailed for an error."""
    error, *values = result
    if int(error) != 0:
        raise RunFailed(f"CUDA error {error!s}")
    return values[0] if values else None


def _unavailable(text: str) -> FailedPrecondition:
    return FailedPrecondition("TENSORRT_UNAVAILABLE", f"TensorRT cannot be used: {text}")


def _unsupported(text: str) -> FailedPrecondition:
    return FailedPrecondition("TENSORRT_UNSUPPORTED", f"TensorRT cannot serve the version: {text}")
