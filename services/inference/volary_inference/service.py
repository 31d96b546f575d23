"""Composition: the engine, its two listeners, the stream to gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from inference import grpc_service_pb2_grpc
from volary.inference.v1 import control_service_pb2_grpc, prediction_service_pb2_grpc
from volary_kit.errors import VolaryError
from volary_kit.registration import Servicer
from volary_kit.resources import Resources
from volary_kit.server import AioServer, Listener
from volary_kit.service import Service
from volary_kit.settings import SettingsError
from volary_kit.statuses import ERRORS, code_of

from volary_inference.backends.tensorrt import PlanCache
from volary_inference.domain.engine import Engine, PythonEngine
from volary_inference.domain.events import EventRing
from volary_inference.domain.failpoints import Failpoints
from volary_inference.domain.predictions import VersionKey
from volary_inference.domain.versions import Versions
from volary_inference.feature_source import FeatureSource
from volary_inference.handlers import control, prediction, v2
from volary_inference.handlers.v2_extensions import ExtendedV2Handler, V2Extensions
from volary_inference.last_predictions import LastPredictions
from volary_inference.lifecycle import trial
from volary_inference.lifecycle.attachment import Attachment, Reporter
from volary_inference.lifecycle.crashes import Crashes, RunJournal
from volary_inference.lifecycle.desired import Desired, DesiredFile
from volary_inference.lifecycle.keeper import Keeper
from volary_inference.lifecycle.packages import RegistryPackages
from volary_inference.lifecycle.repository import Repository
from volary_inference.lifecycle.residence import Bounds, Residence
from volary_inference.lifecycle.verdicts import Verdicts
from volary_inference.measures import EngineCollector
from volary_inference.native.composition import (
    DataListener,
    NativeEngine,
    chosen,
    engine_name,
    loader_of,
)
from volary_inference.reply_store import RedisReplies
from volary_inference.settings import InferenceSettings
from volary_inference.shared_memory import Regions
from volary_inference.stream import PredictionStream, redis_client

log = logging.getLogger(__name__)
Kit = Resources[InferenceSettings]
FLUSH_S = 5.0


@asynccontextmanager
async def build(kit: Kit, *, with_failpoints: bool = False) -> AsyncIterator[Service]:
    """Put the service together; what was queued is answered before it is taken apart."""
    settings = kit.settings
    versions, failpoints = Versions(), Failpoints()
    ring = EventRing(settings.event_capacity if settings.redis_url else 0)
    engine = PythonEngine(
        versions, ring, kit.clock, failpoints, error_of=injected_error, code_of=code_of
    )
    is_breakable = with_failpoints or settings.failpoints
    native = chosen(kit, ring)
    armable = failpoints if is_breakable else None
    handler = control.ControlHandler(versions, ring, armable, engine_name(native))
    file = DesiredFile(settings.data_dir / f"desired-{settings.instance}.json")
    journal = RunJournal(settings.data_dir / f"running-{settings.instance}")
    residence = _residence(kit, versions)
    last = _last_predictions(kit)
    keeper = _keeper(kit, versions, journal, native, residence, last)
    regions = Regions(settings.shared_memory_prefix) if settings.shared_memory_prefix else None
    repository = Repository(keeper, versions, asyncio.get_running_loop())
    extensions = V2Extensions(repository, regions, is_traced=settings.otlp_endpoint is not None)
    data = _data_server(kit, engine, versions, extensions, native)
    attachment = _attachment(kit, data, versions, keeper, file, engine_name(native))
    keeper.on_change(attachment.wake)
    _remember(keeper, file, is_alone=not kit.channels.is_configured("gateway"))
    collector = EngineCollector(versions, ring, residence)
    kit.registry.register(collector)
    stream = _stream(settings, ring)
    if native is not None:
        native.start(versions, failpoints)
    is_attached = kit.channels.is_configured("gateway")
    background = [attachment.run] if is_attached else []
    if settings.idle_forget_s:
        background.append(partial(_forget_idle, residence, settings.idle_forget_s))
    try:
        async with _rest(kit, data) as rest:
            yield Service(
                readiness=[keeper.is_warm],
                background=background,
                listeners=[data, _control_server(kit, handler), *rest],
                leaving=[partial(attachment.leave, settings.last_wait_s)] if is_attached else [],
            )
    finally:
        await keeper.close()
        if native is not None:
            await asyncio.to_thread(native.close, FLUSH_S)
        journal.close()
        if regions is not None:
            regions.close()
        if stream is not None:
            await asyncio.to_thread(stream.close, FLUSH_S)
        if last is not None:
            await asyncio.to_thread(last.close, FLUSH_S)
        kit.registry.unregister(collector)


def _keeper(
    kit: Kit,
    versions: Versions,
    journal: RunJournal,
    native: NativeEngine | None,
    residence: Residence,
    last: LastPredictions | None,
) -> Keeper:
    """Accuse what ran when the process before crashed, then begin a journal of this one's runs."""
    settings = kit.settings
    crashes = Crashes(settings.data_dir / f"running-{settings.instance}")
    for digest in journal.suspects():
        log.warning("%s ran when the process before crashed: %d times", digest, crashes.add(digest))
    journal.open()
    limits = trial.Limits(settings.trial_memory_bytes, settings.trial_timeout_s)
    rows = settings.max_batch_rows
    verdicts = Verdicts(settings.data_dir / "verdicts", rows)
    trials = trial.Trials(crashes, verdicts, limits, rows)
    packages = RegistryPackages(
        kit.channels.to("registry"), settings.data_dir, settings.max_artifact_bytes
    )
    if settings.cuda and settings.tensorrt:
        raise SettingsError("VOLARY_INFERENCE_CUDA: graphs run on TensorRT or by CUDA, not both")
    plans = PlanCache(settings.data_dir / "plans") if settings.tensorrt else None
    loader = loader_of(kit, native, journal, residence, plans, _replies(kit), last)
    return Keeper(versions, packages, loader, trials, kit.clock)


def _replies(kit: Kit) -> RedisReplies | None:
    settings = kit.settings
    if settings.redis_url is None:
        return None
    return RedisReplies(settings.redis_url, settings.response_cache_timeout_s, kit.clock)


def _last_predictions(kit: Kit) -> LastPredictions | None:
    if kit.settings.redis_url is None:
        return None
    last = LastPredictions(redis_client(kit.settings.redis_url), kit.clock)
    last.start()
    return last


def _residence(kit: Kit, versions: Versions) -> Residence:
    settings = kit.settings
    bounds = Bounds(settings.memory_budget_bytes, settings.idle_forget_s)
    is_pinned = partial(_is_in_production, versions) if settings.pin_production else _is_nothing
    return Residence(bounds, kit.clock, is_pinned)


async def _forget_idle(residence: Residence, idle_s: float) -> None:
    """Look for what nobody asks for: a graph goes within a quarter more than its time."""
    while True:
        await asyncio.sleep(idle_s / 4)
        residence.forget_idle()


def _is_nothing(_key: VersionKey) -> bool:
    return False


def _is_in_production(versions: Versions, key: VersionKey) -> bool:
    return versions.production_of(key.of_model) == key.version


def _attachment(
    kit: Kit,
    data: DataListener,
    versions: Versions,
    keeper: Keeper,
    file: DesiredFile,
    engine: str,
) -> Attachment:
    reporter = Reporter(
        replica_id=f"inference-{kit.settings.instance}",
        address=lambda: kit.settings.address or str(data.address),
        versions=versions,
        keeper=keeper,
        health=kit.health,
        engine=engine,
        clock=kit.clock,
    )
    return Attachment(kit.channels.to("gateway"), reporter, keeper, file, kit.health, kit.clock)


def injected_error(code: int) -> VolaryError:
    """Return the error of a failpoint's gRPC status code."""
    return ERRORS[code]("FAILPOINT", "a failpoint is armed for this version")


def _remember(keeper: Keeper, file: DesiredFile, *, is_alone: bool) -> None:
    """Take up the set of the life before; without a gateway an empty one is all there is."""
    remembered = file.read()
    if remembered is None and is_alone:
        remembered = Desired(0)
    if remembered is not None:
        keeper.want(remembered)


def _data_server(
    kit: Kit,
    engine: Engine,
    versions: Versions,
    extensions: V2Extensions,
    native: NativeEngine | None,
) -> DataListener:
    settings = kit.settings
    infer = ExtendedV2Handler(
        engine, versions, lambda: kit.health.is_ready, settings.stream_message_timeout_s
    ).extend(extensions)
    predict = prediction.PredictionHandler(
        engine, versions, FeatureSource(kit.channels.to_sync("features"))
    )
    servicers = [
        Servicer(
            grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, infer, v2.SERVICE
        ),
        Servicer(
            prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server,
            predict,
            prediction.SERVICE,
        ),
    ]
    server = kit.sync_server(
        servicers,
        port=settings.port,
        threads=settings.threads,
        streams=settings.streams,
        quick=[f"/{v2.SERVICE}/ModelInfer"],
        address=None if native is None else native.address,
    )
    return server if native is None else native.listener(server)


@asynccontextmanager
async def _rest(kit: Kit, data: DataListener) -> AsyncIterator[Sequence[Listener]]:
    """Speak V2 over HTTP for this replica alone, where a port is set; calls go to its data port."""
    settings = kit.settings
    if settings.rest_port is None:
        yield ()
        return
    from volary_inference.rest.application import Limits  # a server that few replicas run
    from volary_inference.rest.service import listening

    limits = Limits(settings.rest_max_body_bytes, settings.rest_max_json_bytes)
    async with listening(
        kit, settings.rest_port, lambda: settings.address or str(data.address), limits
    ) as listener:
        yield (listener,)


def _control_server(kit: Kit, handler: control.ControlHandler) -> AioServer:
    add = control_service_pb2_grpc.add_ControlServiceServicer_to_server
    servicer = Servicer(add, handler, control.SERVICE)
    return kit.aio_server([servicer], port=kit.settings.control_port)


def _stream(settings: InferenceSettings, ring: EventRing) -> PredictionStream | None:
    if settings.redis_url is None:
        return None
    stream = PredictionStream(ring, redis_client(settings.redis_url))
    stream.start()
    return stream
