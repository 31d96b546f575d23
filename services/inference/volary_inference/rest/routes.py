"""Every route of the protocol but inference: which call it is, and what its reply says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from inference import grpc_service_pb2 as pb
from volary_kit.errors import InvalidArgument

from volary_inference.rest.documents import Document, plain, required

Names = Mapping[str, str]
Told = tuple[object, int]
OK, NOT_TRUE = 200, 400  # the protocol: "a 4xx status code indicates false"
MODEL, VERSION = "/models/{model}", "/models/{model}/versions/{version}"
REST_EXTENSION = "binary_tensor_data"


def _plain(reply: Message) -> Told:
    return plain(reply), OK


@dataclass(frozen=True, slots=True)
class Route:
    """One route below /v2; `ask` gets the names in the path and the body."""

    verb: str
    path: str
    rpc: str
    ask: Callable[[Names, Document], Message]
    tell: Callable[[Any], Told] = _plain


def _named(kind: Callable[..., Message]) -> Callable[[Names, Document], Message]:
    return lambda names, _: kind(name=names.get("model", ""), version=names.get("version", ""))


def _bare(kind: Callable[[], Message]) -> Callable[[Names, Document], Message]:
    return lambda _names, _body: kind()


def _live(reply: pb.ServerLiveResponse) -> Told:
    return {"live": reply.live}, OK if reply.live else NOT_TRUE


def _ready(reply: pb.ServerReadyResponse | pb.ModelReadyResponse) -> Told:
    if reply.ready:
        return {"ready": True}, OK
    return {"ready": False, "error": "not ready", "reason": "NOT_READY"}, NOT_TRUE


def _server(reply: pb.ServerMetadataResponse) -> Told:
    found = plain(reply)
    found["extensions"].append(REST_EXTENSION)
    return found, OK


def _config(reply: pb.ModelConfigResponse) -> Told:
    return plain(reply.config), OK


def _statistics(reply: pb.ModelStatisticsResponse) -> Told:
    return plain(reply, is_whole=True), OK


def _index(_: Names, body: Document) -> Message:
    return pb.RepositoryIndexRequest(
        repository_name=required(body.get("repository_name", ""), str, "repository_name"),
        ready=required(body.get("ready", False), bool, "ready"),
    )


def _models(reply: pb.RepositoryIndexResponse) -> Told:
    return plain(reply)["models"], OK


def _control(kind: Callable[..., Message]) -> Callable[[Names, Document], Message]:
    """Ask for a load or an unload; what the protocol's default says anyway is left out."""

    def ask(names: Names, body: Document) -> Message:
        request: Any = kind(model_name=names["model"])
        for name, value in required(body.get("parameters", {}), dict, "parameters").items():
            if name == "unload_dependents" and value is False:
                continue
            request.parameters[name].string_param = str(value)[:64]
        return request

    return ask


def _done(_: Message) -> Told:
    return {}, OK


def _region(kind: Callable[..., Message]) -> Callable[[Names, Document], Message]:
    return lambda names, _: kind(name=names.get("region", ""))


def _register(names: Names, body: Document) -> Message:
    return pb.SystemSharedMemoryRegisterRequest(
        name=names["region"],
        key=required(body.get("key", ""), str, "key"),
        offset=_bytes(body.get("offset", 0), "offset"),
        byte_size=_bytes(body.get("byte_size", 0), "byte_size"),
    )


def _register_cuda(names: Names, body: Document) -> Message:
    return pb.CudaSharedMemoryRegisterRequest(
        name=names["region"],
        device_id=_bytes(body.get("device_id", 0), "device_id") & 0x7FFF_FFFF,
        byte_size=_bytes(body.get("byte_size", 0), "byte_size"),
    )


def _bytes(value: object, field: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InvalidArgument("SIZE_INVALID", f"{field} is a number of bytes", field=field)
    return value


def _regions(reply: pb.SystemSharedMemoryStatusResponse) -> Told:
    return list(plain(reply)["regions"].values()), OK


def _trace(names: Names, body: Document) -> Message:
    """Change trace settings: a text, a list of texts, or null for what it is by default."""
    request = pb.TraceSettingRequest(model_name=names.get("model", ""))
    for name, value in body.items():
        given = [] if value is None else value if isinstance(value, list) else [value]
        texts = [required(each, str, name) for each in given]
        request.settings[name].value.extend(texts)
    return request


def _traced(reply: pb.TraceSettingResponse) -> Told:
    found = {name: list(setting.value) for name, setting in reply.settings.items()}
    return {n: v if n == "trace_level" else "".join(v[:1]) for n, v in found.items()}, OK


def _log(_: Names, body: Document) -> Message:
    request = pb.LogSettingsRequest()
    for name, value in body.items():
        match value:
            case bool():
                request.settings[name].bool_param = value
            case int() if 0 <= value < 1 << 32:
                request.settings[name].uint32_param = value
            case str():
                request.settings[name].string_param = value
            case _:
                text = "a setting is true, false, a small number or a text"
                raise InvalidArgument("SETTING_INVALID", text, field=name)
    return request


def _logged(reply: pb.LogSettingsResponse) -> Told:
    found: Document = {}
    for name, setting in reply.settings.items():
        which = setting.WhichOneof("parameter_choice")
        found[name] = None if which is None else getattr(setting, which)
    return found, OK


def _model(path: str) -> tuple[Route, ...]:
    """Return what can be asked of a model, or of one version of it."""
    statistics = _named(pb.ModelStatisticsRequest)
    return (
        Route("GET", path, "ModelMetadata", _named(pb.ModelMetadataRequest)),
        Route("GET", f"{path}/ready", "ModelReady", _named(pb.ModelReadyRequest), _ready),
        Route("GET", f"{path}/config", "ModelConfig", _named(pb.ModelConfigRequest), _config),
        Route("GET", f"{path}/stats", "ModelStatistics", statistics, _statistics),
    )


def _repository() -> tuple[Route, ...]:
    load, unload = pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest
    at = f"/repository{MODEL}"
    return (
        Route("POST", "/repository/index", "RepositoryIndex", _index, _models),
        Route("POST", f"{at}/load", "RepositoryModelLoad", _control(load), _done),
        Route("POST", f"{at}/unload", "RepositoryModelUnload", _control(unload), _done),
    )


def _memory(at: str, kind: str, register: Callable[[Names, Document], Message]) -> list[Route]:
    """Return the routes of one kind of shared memory, for one region and for all."""
    status = _region(getattr(pb, f"{kind}StatusRequest"))
    leave = _region(getattr(pb, f"{kind}UnregisterRequest"))
    one = f"{at}/region/{{region}}"
    return [
        Route("POST", f"{one}/register", f"{kind}Register", register, _done),
        *(Route("GET", f"{path}/status", f"{kind}Status", status, _regions) for path in (at, one)),
        *(
            Route("POST", f"{path}/unregister", f"{kind}Unregister", leave, _done)
            for path in (at, one)
        ),
    ]


def _settings() -> Iterator[Route]:
    for verb in ("GET", "POST"):
        yield Route(verb, "/logging", "LogSettings", _log, _logged)
        for at in ("", MODEL):
            yield Route(verb, f"{at}/trace/setting", "TraceSetting", _trace, _traced)


ROUTES: tuple[Route, ...] = (
    Route("GET", "", "ServerMetadata", _bare(pb.ServerMetadataRequest), _server),
    Route("GET", "/health/live", "ServerLive", _bare(pb.ServerLiveRequest), _live),
    Route("GET", "/health/ready", "ServerReady", _bare(pb.ServerReadyRequest), _ready),
    # before the models: none can be named so
    Route(
        "GET", "/models/stats", "ModelStatistics", _named(pb.ModelStatisticsRequest), _statistics
    ),
    *_model(MODEL),
    *_model(VERSION),
    *_repository(),
    *_memory("/systemsharedmemory", "SystemSharedMemory", _register),
    *_memory("/cudasharedmemory", "CudaSharedMemory", _register_cuda),
    *_settings(),
)
