"""Which component listens where: everything counts from one base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from volary_cli.launcher.errors import PortTakenError
from volary_cli.launcher.loopback import LOOPBACK, is_taken

DATA, CONTROL, METRICS = "data", "control", "metrics"
ENVOY, ENVOY_ADMIN, POSTGRES, REDIS, TEMPORAL, TEMPORAL_UI, TEMPORAL_METRICS = range(7)
REST, REST_METRICS = 7, 8
FIRST_SERVICE, FIRST_REPLICA, EACH = 10, 50, 3
MAX_REPLICAS = 16  # the last port of the last replica is base + 97


@dataclass(frozen=True)
class PortPlan:
    """The ports of a mesh; its client address is the base itself."""

    base: int

    def at(self, offset: int) -> int:
        return self.base + offset

    def service(self, index: int) -> dict[str, int]:
        """Return the ports of the service at a place of the table."""
        return self._three(FIRST_SERVICE + index * EACH)

    def replica(self, index: int) -> dict[str, int]:
        """Return the ports of an inference replica."""
        return self._three(FIRST_REPLICA + index * EACH)

    def _three(self, offset: int) -> dict[str, int]:
        return {name: self.at(offset + i) for i, name in enumerate((DATA, CONTROL, METRICS))}


def address(port: int) -> str:
    """Return host:port on this machine."""
    return f"{LOOPBACK}:{port}"


def require_free(ports: Mapping[str, Mapping[str, int]]) -> None:
    """Raise PortTakenError that names every taken port, who needs it and who has it."""
    taken = [
        f"port {port} ({component} {use}) is taken{_by(port)}"
        for component, uses in ports.items()
        for use, port in uses.items()
        if is_taken(port)
    ]
    if taken:
        raise PortTakenError("; ".join(taken) + ". Choose others with --port-base")


def _by(port: int) -> str:
    """Say which process listens on a port, as far as this user may know."""
    try:
        rows = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ""
    for row in rows:
        if row.laddr and row.laddr.port == port and row.status == psutil.CONN_LISTEN and row.pid:
            return f" by {psutil.Process(row.pid).name()} (pid {row.pid})"
    return ""
