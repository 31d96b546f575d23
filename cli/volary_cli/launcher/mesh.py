"""A mesh on one machine: its engines, its services, its edge, put together."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from volary_kit.clock import SystemClock

from volary_cli.launcher import ports
from volary_cli.launcher.component import Component, Kind
from volary_cli.launcher.databases import TRACES, Databases
from volary_cli.launcher.engines import (
    Engine,
    EnvoyEngine,
    PostgresEngine,
    RedisEngine,
    TemporalEngine,
)
from volary_cli.launcher.folder import MeshFolder
from volary_cli.launcher.http_probe import HttpProbe
from volary_cli.launcher.identities import LAUNCHER, Identities
from volary_cli.launcher.loopback import LOOPBACK
from volary_cli.launcher.orphans import mark
from volary_cli.launcher.ports import DATA, METRICS, PortPlan, address
from volary_cli.launcher.processes import Command
from volary_cli.launcher.queues import Queues
from volary_cli.launcher.readiness import HealthProbe
from volary_cli.launcher.services import (
    INFERENCE,
    SERVICES,
    Surroundings,
    identity_names,
    version_of,
)
from volary_cli.launcher.settings import LauncherSettings

ENVOY, REST = "envoy", "rest"
BOOTSTRAP = Path(__file__).parents[3] / "deploy" / "compose" / "envoy-bootstrap.yaml"


@dataclass(frozen=True)
class Options:
    """What `up` was asked for."""

    folder: MeshFolder
    settings: LauncherSettings
    port_base: int
    replicas: int
    has_failpoints: bool
    max_replicas: int = 0  # above `replicas`: so many may run when calls wait


class Mesh:
    """Builds the components of one mesh and knows its addresses."""

    def __init__(self, options: Options) -> None:
        settings, folder = options.settings, options.folder
        self._options = options
        self._folder = folder
        self._ports = PortPlan(options.port_base)
        self._identities = Identities(folder)
        at = self._ports.at
        self._postgres = PostgresEngine(
            folder.engine("postgres"), at(ports.POSTGRES), folder.secret("postgres")
        )
        self._redis = RedisEngine(folder.engine("redis"), at(ports.REDIS), folder.secret("redis"))
        self._temporal = TemporalEngine(
            folder.engine("temporal"),
            at(ports.TEMPORAL),
            at(ports.TEMPORAL_UI),
            at(ports.TEMPORAL_METRICS),
            cache=settings.cache,
        )
        self._databases = Databases(
            settings.postgres_url or self._postgres.url(),
            {name: folder.secret(f"postgres.{name}") for name in _schemas()},
            is_embedded=settings.postgres_url is None,
        )
        self._surroundings = self._describe()

    @property
    def addresses(self) -> dict[str, str | None]:
        """Where a person or a script finds what, as host:port."""
        settings = self._options.settings
        return {
            "gateway": address(self._ports.at(ports.ENVOY)),
            "temporal": settings.temporal_address or self._temporal.address,
            "temporal_ui": None if settings.temporal_address else self._temporal.ui_address,
            "postgres": _host_port(settings.postgres_url) or self._postgres.address,
            "redis": _host_port(settings.redis_url) or self._redis.address,
        }

    async def prepare(self) -> None:
        """Make keys and folders, check every setting; nothing has started yet.

        Raises ConfigurationError, PortTakenError, EngineError.
        """
        self._identities.make(identity_names())
        for name in (*identity_names(), REST):
            self._folder.service(name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for index, row in enumerate(SERVICES):
            self._surroundings.environment(row, self._ports.service(index), "0")
        self._surroundings.environment(INFERENCE, self._ports.replica(0), "0")
        later = range(self._options.replicas, self._options.max_replicas)
        every = [*self.components(), *(self.replica(index) for index in later)]
        ports.require_free({c.name: c.ports for c in every})
        if self._options.settings.postgres_url is not None:
            await self._databases.provision()

    def components(self) -> tuple[Component, ...]:
        """Return every process of this mesh; engines that exist already are left out."""
        built = self._engines()
        if self._options.settings.otlp_endpoint is None:
            built.append(self._traces())
        for index, row in enumerate(SERVICES):
            built.append(self._surroundings.component(row, self._ports.service(index)))
        built += [self.replica(index) for index in range(self._options.replicas)]
        built += [self._rest(), self._envoy()]
        names = {component.name for component in built}
        built = [self._with_api_key(c) if c.name == "gateway" else c for c in built]
        return tuple(replace(c, needs=tuple(n for n in c.needs if n in names)) for c in built)

    def replica(self, index: int) -> Component:
        """Return one inference replica."""
        three = self._ports.replica(index)
        return self._surroundings.component(INFERENCE, three, instance=str(index))

    def queues(self) -> Queues:
        """Return how long calls wait at the replicas."""
        key = self._identities.key(LAUNCHER)
        return Queues(self._surroundings.addresses["gateway"], key, SystemClock())

    def _describe(self) -> Surroundings:
        settings, plan = self._options.settings, self._ports
        at = {
            row.name: address(plan.service(i)[DATA])
            for i, row in enumerate(SERVICES)
            if row.kind is Kind.SERVICE  # a worker takes no calls
        }
        first = plan.replica(0)
        return Surroundings(
            folder=self._folder,
            identities=self._identities,
            databases=self._databases,
            redis_url=settings.redis_url or self._redis.url,
            temporal=settings.temporal_address or self._temporal.address,
            otlp_endpoint=settings.otlp_endpoint or f"http://{self._traces_address}",
            addresses=at | {"inference": address(first[DATA])},
            edge=address(plan.at(ports.ENVOY)),
            edge_admin=address(plan.at(ports.ENVOY_ADMIN)),
            rest=address(plan.at(ports.REST)),
            has_failpoints=self._options.has_failpoints,
        )

    @property
    def _traces_address(self) -> str:
        return address(self._traces_ports[DATA])

    @property
    def _traces_ports(self) -> dict[str, int]:
        three = self._ports.service(len(SERVICES))
        return {DATA: three[DATA], METRICS: three[METRICS]}

    def _engines(self) -> list[Component]:
        settings = self._options.settings
        built: list[Component] = []
        if settings.postgres_url is None:
            component = self._engine(self._postgres, {DATA: self._postgres.port})
            built.append(replace(component, provision=self._databases.provision))
        if settings.redis_url is None:
            built.append(self._engine(self._redis, {DATA: self._redis.port}))
        if settings.temporal_address is None:
            uses = {
                DATA: self._temporal.port,
                "ui": self._temporal.ui_port,
                METRICS: self._temporal.metrics_port,
            }
            built.append(self._engine(self._temporal, uses))
        return built

    def _engine(
        self,
        engine: PostgresEngine | RedisEngine | TemporalEngine | EnvoyEngine,
        uses: dict[str, int],
        kind: Kind = Kind.ENGINE,
        needs: tuple[str, ...] = (),
    ) -> Component:
        return Component(
            name=engine.name,
            kind=kind,
            needs=needs,
            ports=uses,
            command=lambda: self._marked(engine),
            is_ready=engine.is_ready,
            prepare=engine.prepare,
            version=lambda: engine.version,
        )

    def _marked(self, engine: Engine) -> Command:
        command = engine.command()
        return replace(command, env={**command.env, **mark(self._folder.root)})

    def _traces(self) -> Component:
        uses = self._traces_ports
        environment = {
            "VOLARY_TRACES_PORT": str(uses[DATA]),
            "VOLARY_TRACES_METRICS_PORT": str(uses[METRICS]),
            "VOLARY_TRACES_STORE_URL": self._databases.url(TRACES),
            "VOLARY_TRACES_DATA_DIR": str(self._folder.service(TRACES)),
        }
        return Component(
            name=TRACES,
            kind=Kind.SERVICE,
            needs=("postgres",),
            ports=uses,
            command=lambda: Command(
                argv=(sys.executable, "-m", "volary_cli.traces"),
                folder=self._folder.service(TRACES),
                env=environment | mark(self._folder.root),
            ),
            is_ready=HealthProbe(address(uses[DATA])),
            version=lambda: version_of("volary-cli"),
        )

    def _rest(self) -> Component:
        """Return who turns V2 over HTTP into gRPC: it calls back the edge that called it."""
        uses = {DATA: self._ports.at(ports.REST), METRICS: self._ports.at(ports.REST_METRICS)}
        environment = {
            "VOLARY_REST_PORT": str(uses[DATA]),
            "VOLARY_REST_METRICS_PORT": str(uses[METRICS]),
            "VOLARY_REST_UPSTREAM_ADDRESS": self._surroundings.edge,
            "VOLARY_REST_OTLP_ENDPOINT": self._surroundings.otlp_endpoint,
            "VOLARY_REST_DATA_DIR": str(self._folder.service(REST)),
        }
        return Component(
            name=REST,
            kind=Kind.EDGE,
            needs=("gateway",),
            ports=uses,
            command=lambda: Command(
                argv=(sys.executable, "-m", "volary_inference.rest"),
                folder=self._folder.service(REST),
                env=environment | mark(self._folder.root),
            ),
            is_ready=HttpProbe(uses[DATA], "/livez"),
            version=lambda: version_of("volary-inference"),
        )

    def _envoy(self) -> Component:
        gateway = next(i for i, row in enumerate(SERVICES) if row.name == "gateway")
        admin = self._ports.at(ports.ENVOY_ADMIN)
        bootstrap = Template(BOOTSTRAP.read_text()).substitute(
            NODE_ID=f"volary-{self._options.port_base}",
            ADMIN_HOST=LOOPBACK,
            ADMIN_PORT=admin,
            GATEWAY_HOST=LOOPBACK,
            GATEWAY_PORT=self._ports.service(gateway)[DATA],
            CREDENTIAL_FILE=self._folder.envoy_credential,
        )
        engine = EnvoyEngine(
            self._folder.engine(ENVOY), self._ports.at(ports.ENVOY), admin, bootstrap
        )
        uses = {DATA: engine.port, "admin": engine.admin_port}
        return self._engine(engine, uses, Kind.EDGE, ("gateway",))

    def _with_api_key(self, gateway: Component) -> Component:
        async def provision() -> None:
            await self._identities.ensure_api_key(address(gateway.ports[DATA]), SystemClock())

        return replace(gateway, provision=provision)


def _schemas() -> list[str]:
    return [TRACES, *(row.name for row in SERVICES if row.has_schema)]


def _host_port(url: str | None) -> str | None:
    return None if url is None else urlsplit(url).netloc.rpartition("@")[2]
