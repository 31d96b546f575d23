"""TensorRT and CUDA as their wheels declare them, on no device at all.

Each method here has the name, the parameters and their kinds that `tensorrt_bindings` 11.2.1.2 and
`cuda.bindings.runtime` 13 show in their signatures, and nothing else is here: another call fails.
Memory is the machine's own, an engine is its ONNX graph, and a recorded graph repeats
what was enqueued while it was recorded. It shows how the backend calls, not what a GPU does.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from volary_inference.backends.onnxruntime_cpu import OnnxGraph
from volary_inference.domain.datatypes import DATATYPES

OK = 0


class Severity(enum.IntEnum):
    WARNING = 2


class BuilderFlag(enum.IntEnum):
    TF32 = 0


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0


class Dims(tuple[int, ...]):
    """`Dims(shape: Sequence[int])`."""

    __slots__ = ()


class HostMemory:
    """`IHostMemory`: what `bytes` takes by the buffer protocol, and nothing else."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bytes__(self) -> bytes:
        return self._data


class Logger:
    def __init__(self, min_severity: Severity) -> None:
        assert isinstance(min_severity, Severity)


class Network:
    data = b""


class Parser:
    num_errors = 0

    def __init__(self, network: Network, logger: Logger) -> None:
        assert isinstance(logger, Logger)
        self._network = network

    def parse(self, model: bytes) -> bool:
        self._network.data = model
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002
        assert min == opt == max
        assert all(isinstance(each, Dims) for each in (min, opt, max))
        self.shapes[input] = tuple(opt)


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> HostMemory:
        return HostMemory(self.data or b"times")


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self._timings: TimingCache | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert isinstance(pool, MemoryPoolType)
        assert pool_size > 0

    def clear_flag(self, flag: BuilderFlag) -> None:
        assert isinstance(flag, BuilderFlag)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self._timings = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        assert self._timings is not None
        return self._timings


class Device:
    """The two modules, and what was done with them."""

    __version__ = "11.2.1.2"

    def __init__(self) -> None:
        self.builds: list[Config] = []
        self.launches = 0
        self.memory: dict[int, Any] = {}
        self.handles: set[int] = set()
        self._next = 1
        self._recording: list[Callable[[], None]] | None = None
        self._recorded: dict[int, list[Callable[[], None]]] = {}
        self.trt = SimpleNamespace(
            __version__=self.__version__, Logger=Logger, ILogger=Severity, Dims=Dims,
            BuilderFlag=BuilderFlag, MemoryPoolType=MemoryPoolType, OnnxParser=Parser,
            NetworkDefinitionCreationFlag=NetworkDefinitionCreationFlag,
            Builder=lambda logger: Builder(self, logger),
            Runtime=lambda logger: Runtime(self, logger),
        )  # fmt: skip
        self.cuda = SimpleNamespace(
            cudaStreamCreate=lambda: (OK, self._handle()),
            cudaStreamDestroy=self._destroy,
            cudaStreamSynchronize=lambda stream: (self._known(stream),),
            cudaHostAlloc=lambda size, flags: self._allocate(size) if flags == 0 else (1, 0),
            cudaMalloc=self._allocate,
            cudaFree=self._free,
            cudaFreeHost=self._free,
            cudaMemcpyAsync=self._copy,
            cudaStreamBeginCapture=self._begin,
            cudaStreamEndCapture=self._end,
            cudaGraphInstantiate=self._instantiate,
            cudaGraphDestroy=self._destroy,
            cudaGraphExecDestroy=self._destroy,
            cudaGraphLaunch=self._launch,
            cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread"),
            cudaMemcpyKind=SimpleNamespace(
                cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out"
            ),
        )

    def do(self, work: Callable[[], None]) -> None:
        """Do what is enqueued: at once, or whenever what is being recorded is launched."""
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def _handle(self) -> int:
        self._next += 1
        self.handles.add(self._next)
        return self._next

    def _known(self, handle: int) -> int:
        return OK if handle in self.handles else 400

    def _destroy(self, handle: int) -> tuple[int]:
        self.handles.remove(handle)
        return (OK,)

    def _allocate(self, size: int) -> tuple[int, int]:
        held = (ctypes.c_byte * size)()
        self.memory[ctypes.addressof(held)] = held
        return OK, ctypes.addressof(held)

    def _free(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (OK,)

    def _copy(self, dst: int, src: int, count: int, kind: str, stream: int) -> tuple[int]:
        assert kind in ("in", "out")
        assert dst in self.memory
        assert src in self.memory
        self.do(lambda: ctypes.memmove(dst, src, count) and None)
        return (self._known(stream),)

    def _begin(self, stream: int, mode: str) -> tuple[int]:
        assert mode == "thread"
        self._recording = []
        return (self._known(stream),)

    def _end(self, stream: int) -> tuple[int, int]:
        handle, self._recording, recorded = self._handle(), None, self._recording
        self._recorded[handle] = recorded or []
        return self._known(stream), handle

    def _instantiate(self, graph: int, flags: int) -> tuple[int, int]:
        assert flags == 0
        handle = self._handle()
        self._recorded[handle] = self._recorded[graph]
        return OK, handle

    def _launch(self, exec_: int, stream: int) -> tuple[int]:
        self.launches += 1
        for work in self._recorded[exec_]:
            work()
        return (self._known(stream),)


class Builder:
    def __init__(self, device: Device, logger: Logger) -> None:
        assert isinstance(logger, Logger)
        self._device = device

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory:
        self._device.builds.append(config)
        sizes = [next(iter(profile.shapes.values()))[0] for profile in config.profiles]
        return HostMemory(bytes(sizes) + b"|" + network.data)


class Runtime:
    def __init__(self, device: Device, logger: Logger) -> None:
        assert isinstance(logger, Logger)
        self._device = device

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        sizes, bar, data = serialized_engine.partition(b"|")
        return Engine(self._device, list(sizes), data) if bar else None


class Engine:
    def __init__(self, device: Device, sizes: Sequence[int], data: bytes) -> None:
        self.device, self.sizes, self.graph = device, sizes, OnnxGraph(data)

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._engine.device.handles
        self._rows = self._engine.sizes[profile_index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        self._shapes[name] = shape
        return shape[0] == self._rows

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._shapes:
            return Dims(self._shapes[name])
        spec = next(each for each in self._engine.graph.signature.outputs if each.name == name)
        return Dims((self._rows, *spec.shape[1:]))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory in self._engine.device.memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._engine.device.do(self._run)
        return stream_handle in self._engine.device.handles

    def _run(self) -> None:
        signature = self._engine.graph.signature
        feeds = {spec.name: self._array(spec.name, spec.datatype) for spec in signature.inputs}
        for spec in signature.outputs:
            self._array(spec.name, spec.datatype)[:] = self._engine.graph.run(feeds)[spec.name]

    def _array(self, name: str, datatype: str) -> np.ndarray:
        held = self._engine.device.memory[self._addresses[name]]
        dtype = DATATYPES[datatype].dtype
        return np.ctypeslib.as_array(held).view(dtype).reshape(self.get_tensor_shape(name))
