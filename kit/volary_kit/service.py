"""The life of a service process: open, migrate, build, listen, drain, close.

A service is its `build`:

    @asynccontextmanager
    async def build(kit: Resources[RegistrySettings]) -> AsyncIterator[Service]:
        store = Store(kit.require_database())
        yield Service([Servicer(add_RegistryServiceServicer_to_server, Handler(store), NAME)])

and `__main__` is `run("registry", RegistrySettings, build)`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import uvloop

from volary_kit.errors import Unavailable
from volary_kit.health import Check, Readiness
from volary_kit.logs import configure
from volary_kit.metrics import serve_metrics
from volary_kit.migrations import MigrationError, migrate, migrations_of
from volary_kit.registration import ContractError, Servicer
from volary_kit.resources import Resources, address_of, opened
from volary_kit.server import AioServer, Listener, ListenError
from volary_kit.settings import ServiceSettings, SettingsError
from volary_kit.supervision import Supervisor

__all__ = ["Resources", "Service", "Servicer", "run", "serve"]

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)
MIGRATE_FOR_S = 30.0  # Postgres is back 2.4 s after a kill -9; a new machine takes longer
MIGRATE_AGAIN_S = 0.5
EXIT_BROKEN, EXIT_SETTINGS = 1, 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What a service hands to the kit.

    `servicers` are answered by the asyncio server on the service's port; `listeners` are
    further servers of its own; `background` coroutine functions are restarted when they fail;
    `leaving` ones run at SIGTERM, while calls are still taken: the drain begins when they return.
    """

    servicers: Sequence[Servicer] = ()
    readiness: Sequence[Check] = ()
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    listeners: Sequence[Listener] = ()
    leaving: Sequence[Callable[[], Awaitable[None]]] = ()


Build = Callable[[Resources[SettingsT]], AbstractAsyncContextManager[Service]]


def run(name: str, settings_type: type[SettingsT], build: Build[SettingsT]) -> None:
    """Run a service until SIGTERM; exit 0 after a drain, 1 when it cannot start, 2 on settings."""
    try:
        settings = settings_type.read()
        configure(name, settings.instance, settings.log_level)
        uvloop.run(serve(name, settings, build))
    except SettingsError as error:
        _exit(name, error, EXIT_SETTINGS)
    except (ListenError, ContractError, MigrationError, Unavailable) as error:
        _exit(name, error, EXIT_BROKEN)


def _exit(name: str, error: Exception, code: int) -> None:
    sys.stderr.write(f"volary-{name}: {error}\n")
    sys.exit(code)


async def serve(name: str, settings: SettingsT, build: Build[SettingsT]) -> None:
    """Open the resources, build the service, take calls until told to stop."""
    with _stop_signals() as stopping:
        async with opened(name, settings) as kit:
            await _migrated(name, settings)
            # a build may wait for its place: told to stop, it gives up
            giving_up = asyncio.create_task(_cancel_when(stopping, asyncio.current_task()))
            try:
                async with build(kit) as service:
                    giving_up.cancel()
                    await _take_calls(kit, service, stopping)
            except asyncio.CancelledError:
                if not giving_up.done() or giving_up.cancelled():
                    raise
                log.info("told to stop before the first call")


async def _cancel_when(stopping: asyncio.Event, building: asyncio.Task[None] | None) -> None:
    await stopping.wait()
    if building is not None:
        building.cancel()


async def _take_calls(kit: Resources[SettingsT], service: Service, stopping: asyncio.Event) -> None:
    listeners = list(service.listeners)
    servicers = [*service.servicers, *kit.operations_servicers()]
    if servicers:
        address = address_of(kit.settings, kit.settings.port)
        listeners.append(AioServer(servicers, kit.ruling, kit.health, address))
    close_metrics = _metrics(kit)
    readiness = Readiness(kit.health, service.readiness)
    gc.freeze()  # what is imported and built lives on: no collection looks at it again
    async with Supervisor([*kit.chores(), *service.background, readiness.watch]):
        for listener in listeners:
            await listener.start()
        log.info("taking calls on %s", ", ".join(str(_address(each)) for each in listeners))
        await stopping.wait()
        stopping.clear()  # a second signal ends the farewell, a third one the delay
        await _farewell(service.leaving, stopping)
        await _drain(kit, listeners, stopping)
    close_metrics()


async def _farewell(
    leaving: Sequence[Callable[[], Awaitable[None]]], stopping: asyncio.Event
) -> None:
    """Do what comes before a drain, until told again to stop."""
    if not leaving:
        return
    done = asyncio.gather(*(leave() for leave in leaving))
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait({done, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not done.done():
        done.cancel()
        stopping.clear()
    (ended,) = await asyncio.gather(done, return_exceptions=True)
    if isinstance(ended, Exception):  # it goes all the same
        log.error("the farewell failed", exc_info=ended)


async def _drain(
    kit: Resources[SettingsT], listeners: Sequence[Listener], stopping: asyncio.Event
) -> None:
    """Say NOT_SERVING, give balancers the delay to see it, then let the calls finish."""
    log.info("draining")
    kit.health.drain()
    try:
        async with asyncio.timeout(kit.settings.drain_delay_s):
            await stopping.wait()
    except TimeoutError:
        pass
    await asyncio.gather(*(each.stop(kit.settings.grace_s) for each in listeners))
    log.info("drained")


def _address(listener: Listener) -> object:
    return getattr(listener, "address", listener)


def _metrics(kit: Resources[SettingsT]) -> Callable[[], None]:
    settings = kit.settings
    address = address_of(settings, settings.metrics_port)
    address.require_safe()
    files = settings.tls_cert_file, settings.tls_key_file
    certificate = (str(files[0]), str(files[1])) if all(files) else None
    try:
        return serve_metrics(settings.host, settings.metrics_port, kit.registry, certificate)
    except OSError as error:
        raise ListenError(f"cannot serve metrics on {address}: {error.strerror}") from error


async def _migrated(name: str, settings: ServiceSettings) -> None:
    if settings.database_url is None:
        return
    folder = migrations_of(f"volary_{name}")
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + MIGRATE_FOR_S
    while True:
        try:
            await migrate(settings.database_url, name, folder)
        except Unavailable:
            if loop.time() >= give_up_s:
                raise
            log.warning("the database does not answer yet")
            await asyncio.sleep(MIGRATE_AGAIN_S)
        else:
            return


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
