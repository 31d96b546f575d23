"""The table of services, and what each is handed when it starts."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from volary_cli.launcher import declared
from volary_cli.launcher.component import Component, Kind
from volary_cli.launcher.databases import TRACES, Databases
from volary_cli.launcher.folder import MeshFolder
from volary_cli.launcher.identities import ISSUER, Identities
from volary_cli.launcher.orphans import mark
from volary_cli.launcher.ports import CONTROL, DATA, METRICS, address
from volary_cli.launcher.processes import Command
from volary_cli.launcher.readiness import HealthProbe, WorkerProbe

ENGINES = ("postgres", "redis", "temporal")


@dataclass(frozen=True)
class Row:
    """One service of the table."""

    name: str
    needs: tuple[str, ...] = ENGINES
    kind: Kind = Kind.SERVICE
    has_schema: bool = True


# the place in the table gives the ports: a new service comes last
SERVICES = (
    Row("registry"),
    Row("ingest"),
    Row("features"),
    Row("trainer"),
    Row("monitor"),
    Row("gateway"),
    Row("workflows", kind=Kind.WORKER, has_schema=False),
)
INFERENCE = Row("inference", needs=("redis", "gateway"), has_schema=False)


def identity_names() -> list[str]:
    """Return who in a mesh has a key pair of its own."""
    return [TRACES, "envoy", INFERENCE.name, *(row.name for row in SERVICES)]


@dataclass(frozen=True)
class Surroundings:
    """What every service of a mesh is told about the rest of it.

    `addresses` are of the peers by name; `edge` is Envoy's client address,
    `edge_admin` that of its admin server, `rest` who turns V2 over HTTP into gRPC.
    """

    folder: MeshFolder
    identities: Identities
    databases: Databases
    redis_url: str
    temporal: str
    otlp_endpoint: str
    addresses: Mapping[str, str]
    edge: str
    edge_admin: str
    rest: str
    has_failpoints: bool

    def component(
        self, row: Row, ports: Mapping[str, int], *, instance: str | None = None
    ) -> Component:
        """Return the component of a service, or of one replica of it."""
        name = row.name if instance is None else f"{row.name}-{instance}"
        used = {use: port for use, port in ports.items() if self._has_port(row, use)}
        return Component(
            name=name,
            kind=row.kind,
            needs=row.needs,
            ports=used,
            command=lambda: self._command(row, ports, instance or "0"),
            is_ready=self._probe(row, used),
            version=lambda: version_of(f"volary-{row.name}"),
            engine=lambda: engine_of(self._data_dir(row, instance or "0")),
            warning=lambda: warning_of(self._data_dir(row, instance or "0")),
        )

    def environment(self, row: Row, ports: Mapping[str, int], instance: str) -> dict[str, str]:
        """Return the settings of a service as environment; raises ConfigurationError."""
        offered: dict[str, object] = {
            "port": ports[DATA],
            "control_port": ports[CONTROL],
            "metrics_port": ports[METRICS],
            "fallback_port": ports[CONTROL],  # gateway has no control port
            "redis_url": self.redis_url,
            "temporal_address": self.temporal,
            "otlp_endpoint": self.otlp_endpoint,
            "jwks_file": self.folder.jwks,
            "revocations_file": self.folder.revocations,
            "service_key_file": self.identities.key_file(row.name),
            "issuing_key_file": self.identities.key_file(ISSUER),
            "issuing_key_id": ISSUER,
            "envoy_credential_file": self.folder.envoy_credential,
            "rest_address": self.rest,
            "envoy_listen": self.edge,
            "envoy_admin": self.edge_admin,
            "data_dir": self._data_dir(row, instance),
            "instance": instance,
            "failpoints": self.has_failpoints,
        }
        if row.has_schema:
            offered["database_url"] = self.databases.url(row.name)
        offered |= {f"{peer}_address": at for peer, at in self.addresses.items()}
        return declared.environment(row.name, offered)

    def _command(self, row: Row, ports: Mapping[str, int], instance: str) -> Command:
        environment = self.environment(row, ports, instance)
        return Command(
            argv=(sys.executable, "-m", f"volary_{row.name}"),
            folder=self.folder.service(row.name),
            env=environment | mark(self.folder.root),
        )

    def _data_dir(self, row: Row, instance: str) -> Path:
        folder = self.folder.service(row.name)
        return folder if instance == "0" else folder / instance

    def _probe(self, row: Row, ports: Mapping[str, int]) -> Callable[[], Awaitable[bool]]:
        if row.kind is Kind.WORKER:
            return WorkerProbe(self.temporal, f"volary-{row.name}")
        return HealthProbe(*(address(port) for use, port in ports.items() if use != METRICS))

    @staticmethod
    def _has_port(row: Row, use: str) -> bool:
        fields = declared.settings_type(row.name).model_fields
        is_worker_data = row.kind is Kind.WORKER and use == DATA
        return not is_worker_data and (use != CONTROL or "control_port" in fields)


def engine_of(data_dir: Path) -> str:
    """Return which engine a replica runs, as it wrote down at its start; empty for one of one."""
    return _engine_lines(data_dir)[0]


def warning_of(data_dir: Path) -> str:
    """Return why a replica does not run the engine that it should; empty when it does."""
    return _engine_lines(data_dir)[1]


def _engine_lines(data_dir: Path) -> tuple[str, str]:
    try:
        engine, _, warning = (data_dir / "engine").read_text().partition("\n")
    except OSError:
        return "", ""
    return engine.strip(), warning.strip()


def version_of(distribution: str) -> str:
    """Return the installed version; a component runs on while its package is replaced."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
