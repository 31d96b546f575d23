"""What V2 has beside inference: repository control, shared memory, trace and log settings."""

from __future__ import annotations

import logging
from collections.abc import Collection

from inference import grpc_service_pb2 as pb
from volary_kit.calls import current_call
from volary_kit.errors import InvalidArgument, Unimplemented

from volary_inference.domain.predictions import ModelKey
from volary_inference.handlers import v2_memory
from volary_inference.handlers.calls import Context, model_of
from volary_inference.handlers.v2 import V2Handler
from volary_inference.lifecycle.repository import Repository
from volary_inference.shared_memory import Regions, not_local, require_local

EXTENSIONS = ("logging", "trace")
SHARED_MEMORY = "system_shared_memory"
FORWARDED = "x-forwarded-for"
# tritonclient sends it with every unload; no model here depends on another
UNLOAD_DEPENDENTS = "unload_dependents"
LEVELS = ("log_error", "log_warning", "log_info")  # each includes those before it
VERBOSE = "log_verbose_level"
FIXED = {"log_file": "", "log_format": "json"}
TRACED = {
    "trace_mode": "opentelemetry",
    "trace_level": "TIMESTAMPS",
    "trace_rate": "1",
    "trace_count": "-1",
}


class V2Extensions:
    """What the extensions need beside the engine; `regions` None leaves shared memory off."""

    def __init__(self, repository: Repository, regions: Regions | None, *, is_traced: bool) -> None:
        self.repository = repository
        self.regions = regions
        self.is_traced = is_traced


class ExtendedV2Handler(V2Handler):
    """V2 with its extensions. CUDA shared memory is refused by name: nothing here has a GPU."""

    def extend(self, extensions: V2Extensions) -> ExtendedV2Handler:
        """Take what the extensions need and return itself."""
        self._extensions = extensions
        return self

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        reply = super().ServerMetadata(request, context)
        memory = () if self._extensions.regions is None else (SHARED_MEMORY,)
        reply.extensions.extend([*EXTENSIONS, *memory])
        return reply

    def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        if self._extensions.regions is None or not v2_memory.is_shared(request):
            return super().ModelInfer(request, context)
        regions, project = self._local(context), current_call().project
        plain = v2_memory.taken(request, regions, project)
        places = v2_memory.places_of(plain, regions, project)
        reply = super().ModelInfer(plain, context)
        v2_memory.put(reply, places)
        return reply

    def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load again what failed or was unloaded here; gateway alone says what there is to load."""
        self._extensions.repository.load(_repository_model(request), current_call().remaining_s())
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Take a model's versions out of service on this replica, until they are loaded again."""
        model = _repository_model(request, UNLOAD_DEPENDENTS)
        self._extensions.repository.unload(model, current_call().remaining_s())
        return pb.RepositoryModelUnloadResponse()

    def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        self._local(context).register(
            current_call().project, request.name, request.key, request.offset, request.byte_size
        )
        return pb.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self._local(context).unregister(current_call().project, request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        reply = pb.SystemSharedMemoryStatusResponse()
        for region in self._local(context).of(current_call().project, request.name):
            row = reply.regions[region.name]
            row.name, row.key = region.name, region.key
            row.offset, row.byte_size = region.offset, region.size
        return reply

    def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        raise _no_gpu()

    def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        raise _no_gpu()

    def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        raise _no_gpu()

    def TraceSetting(
        self, request: pb.TraceSettingRequest, context: Context
    ) -> pb.TraceSettingResponse:
        """Say how calls are traced; it comes with the process, so another value is refused."""
        found = TRACED | ({} if self._extensions.is_traced else {"trace_level": "OFF"})
        for name, setting in request.settings.items():
            _require_known(name, found)
            if list(setting.value) not in ([], [found[name]]):
                raise _fixed(name)
        reply = pb.TraceSettingResponse()
        for name, value in found.items():
            reply.settings[name].value.append(value)
        return reply

    def LogSettings(
        self, request: pb.LogSettingsRequest, context: Context
    ) -> pb.LogSettingsResponse:
        """Show the log's settings after changing its level as asked."""
        for name in request.settings:
            _require_known(name, (*LEVELS, VERBOSE, *FIXED))
        for name, value in FIXED.items():
            if name in request.settings and request.settings[name].string_param != value:
                raise _fixed(name)
        before = _shown(logging.getLogger().level)
        asked = dict(before)
        for name in (*LEVELS, VERBOSE):
            if name in request.settings:
                setting = request.settings[name]
                asked[name] = int(setting.uint32_param or setting.bool_param)
        if asked != before:
            logging.getLogger().setLevel(_level(asked))
        return _log_settings()

    def _local(self, context: Context) -> Regions:
        if self._extensions.regions is None:
            raise Unimplemented(
                "SHARED_MEMORY_OFF", "this replica was started without shared memory"
            )
        require_local(context.peer())
        if current_call().text(FORWARDED):
            raise not_local()  # a proxy on this machine speaks for somebody elsewhere
        return self._extensions.regions


def _repository_model(
    request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, *known: str
) -> ModelKey:
    """Return the model; artifacts come by digest from the registry, so nothing else is accepted."""
    if request.repository_name:
        raise InvalidArgument(
            "REPOSITORY_UNKNOWN", "there is one repository, without a name", field="repository_name"
        )
    for name in set(request.parameters).difference(known):
        raise InvalidArgument(
            "PARAMETER_UNKNOWN", f"parameter {name[:64]!r} is not known here", field="parameters"
        )
    return model_of(current_call(), request.model_name, "model_name")


def _require_known(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise InvalidArgument(
            "SETTING_UNKNOWN", f"setting {name[:64]!r} is not known here", field="settings"
        )


def _fixed(name: str) -> InvalidArgument:
    text = f"{name} comes with the process and cannot be changed"
    return InvalidArgument("SETTING_FIXED", text, field=f"settings.{name}")


def _shown(level: int) -> dict[str, int]:
    return {
        "log_error": int(level <= logging.ERROR),
        "log_warning": int(level <= logging.WARNING),
        "log_info": int(level <= logging.INFO),
        VERBOSE: int(level <= logging.DEBUG),
    }


def _level(asked: dict[str, int]) -> int:
    """Return the level that shows what is asked for, and all that is worse."""
    if asked[VERBOSE]:
        return logging.DEBUG
    steps = zip(LEVELS, (logging.ERROR, logging.WARNING, logging.INFO), strict=True)
    return min((level for name, level in steps if asked[name]), default=logging.CRITICAL)


def _log_settings() -> pb.LogSettingsResponse:
    reply = pb.LogSettingsResponse()
    shown = _shown(logging.getLogger().level)
    for name in LEVELS:
        reply.settings[name].bool_param = bool(shown[name])
    reply.settings[VERBOSE].uint32_param = shown[VERBOSE]
    for name, value in FIXED.items():
        reply.settings[name].string_param = value
    return reply


def _no_gpu() -> Unimplemented:
    return Unimplemented("NO_GPU", "CUDA shared memory needs a GPU, which this replica has not")
