"""Which engine answers on the data port, and the native one put together."""

from __future__ import annotations

import json
import logging
from typing import TypeAlias

import volary_contract
from volary_kit.metrics import BUCKETS_S
from volary_kit.resources import Resources, address_of
from volary_kit.server import Address, SyncServer
from volary_kit.settings import SettingsError
from volary_kit.telemetry.export import MAX_QUEUE

from volary_inference.backends.tensorrt import PlanCache
from volary_inference.domain.batching import BatchPolicy
from volary_inference.domain.events import EventRing
from volary_inference.domain.failpoints import Failpoints
from volary_inference.domain.guarding import Keeper
from volary_inference.domain.responses import ReplyStore
from volary_inference.domain.versions import Versions
from volary_inference.lifecycle.crashes import RunJournal
from volary_inference.lifecycle.loading import Loader
from volary_inference.lifecycle.residence import Residence
from volary_inference.native import module as modules
from volary_inference.native.listener import NativeListener, SocketFolder
from volary_inference.native.module import DataPlane, NativeModule
from volary_inference.native.records import NativeEvents, NativeRecords
from volary_inference.native.versions import NativeLoader, NativeTable
from volary_inference.settings import InferenceSettings
from volary_inference.stream import redis_client

log = logging.getLogger(__name__)
MICROS = 1_000_000
Kit = Resources[InferenceSettings]
DataListener: TypeAlias = SyncServer | NativeListener


class NativeEngine:
    """The plane with all that feeds it and all that it feeds."""

    def __init__(self, kit: Kit, module: NativeModule, ring: EventRing) -> None:
        self.module = module
        self._kit = kit
        self._folder = SocketFolder()
        settings = kit.settings
        self._plane = _plane_of(kit, module, self._folder)
        self._records = NativeRecords(self._plane, kit.ruling.metrics, kit.telemetry, ring)
        self._events: NativeEvents | None = None
        if settings.redis_url is not None:
            self._events = NativeEvents(self._plane, redis_client(settings.redis_url))

    @property
    def address(self) -> Address:
        """Where the Python server behind it listens."""
        return self._folder.address

    def listener(self, behind: SyncServer) -> NativeListener:
        """Return the listener of the data port."""
        address = address_of(self._kit.settings, self._kit.settings.port)
        return NativeListener(self._plane, behind, self._kit.health, address)

    def start(self, versions: Versions, failpoints: Failpoints) -> None:
        """Follow the versions, and begin to fetch what calls leave behind."""
        NativeTable(self._plane, versions, failpoints).publish()
        self._records.start()
        if self._events is not None:
            self._events.start()

    def close(self, timeout_s: float) -> None:
        """Deliver what is left."""
        if self._events is not None:
            self._events.close(timeout_s)
        self._records.close()
        self._folder.remove()


def _plane_of(kit: Kit, module: NativeModule, folder: SocketFolder) -> DataPlane:
    """Make the plane; raise Unavailable where the module was built for another service than this.

    In an image the two come by ways of their own, and nothing else compares them.
    """
    settings = kit.settings
    try:
        plane: DataPlane = module.DataPlane(
            json.dumps(volary_contract.methods()),
            settings.jwks_file,
            settings.revocations_file,
            folder.socket,
            list(BUCKETS_S),
            kit.ruling.max_calls,
            settings.event_capacity if settings.redis_url else 0,
            MAX_QUEUE,
            kit.telemetry.resource,
        )
        plane.set_stream_timeout(settings.stream_message_timeout_s)
    except (AttributeError, TypeError, ValueError) as error:
        folder.remove()
        raise modules.Unavailable(f"{modules.NAME} does not fit this service: {error}") from error
    return plane


def chosen(kit: Kit, ring: EventRing) -> NativeEngine | None:
    """Return the native engine, None for the Python one alone; raise SettingsError.

    The file `engine` in the data folder says which one it is, and below what is wrong with the
    other one, if anything is.
    """
    native, warning = _chosen(kit, ring)
    if warning:
        log.warning("the Python engine runs: %s", warning)
    kit.settings.data_dir.mkdir(parents=True, exist_ok=True)
    (kit.settings.data_dir / "engine").write_text(f"{engine_name(native)}\n{warning}\n")
    return native


def _chosen(kit: Kit, ring: EventRing) -> tuple[NativeEngine | None, str]:
    """Return the engine, and what `auto` has to say of its choice: a missing cargo is no fault."""
    asked = kit.settings.engine
    if asked == "python" or (asked == "auto" and _is_pythons(kit.settings)):
        return None, ""
    try:
        if kit.settings.tls_cert_file is not None:
            raise modules.Unavailable("the native engine has no TLS: Envoy or python does")
        return NativeEngine(kit, modules.load(), ring), ""
    except modules.Unavailable as error:
        if asked == "native":
            raise SettingsError(f"VOLARY_INFERENCE_ENGINE: {error}") from error
        return None, "" if isinstance(error, modules.NotBuilt) else str(error)


def _is_pythons(settings: InferenceSettings) -> bool:
    """Say whether the native engine could only hand everything over."""
    may_forget = settings.memory_budget_bytes > 0 or settings.idle_forget_s > 0
    is_on_gpu = settings.tensorrt or settings.cuda
    return settings.tls_cert_file is not None or may_forget or is_on_gpu


def engine_name(native: NativeEngine | None) -> str:
    """Return what reports and `status` call the engine."""
    return "python" if native is None else "native"


def loader_of(
    kit: Kit,
    native: NativeEngine | None,
    journal: RunJournal,
    residence: Residence,
    plans: PlanCache | None,
    replies: ReplyStore | None = None,
    keeper: Keeper | None = None,
) -> Loader:
    """Return what makes packages serve in the engine that runs.

    Graphs that may be forgotten, and those on a GPU, are run by the Python engine alone.
    """
    settings = kit.settings
    policy = BatchPolicy(
        max_rows=settings.max_batch_rows, max_delay_s=settings.max_batch_delay_us / MICROS
    )
    if native is None or residence.is_bounded or plans is not None or settings.cuda:
        return Loader(
            policy, kit.clock, journal, residence, plans, replies,
            keeper=keeper, is_on_cuda=settings.cuda,
        )  # fmt: skip
    return NativeLoader(native.module, policy, kit.clock, journal, residence, replies, keeper)
