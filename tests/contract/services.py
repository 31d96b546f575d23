"""The services under contract: one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contracted:
    """A service, the settings that name its ports, and the engines that it is given."""

    name: str
    ports: tuple[str, ...] = ("port",)
    has_schema: bool = True


SERVICES = (
    Contracted("registry"),
    Contracted("ingest"),
    Contracted("features"),
    Contracted("trainer"),
    Contracted("monitor"),
    Contracted("gateway"),
    Contracted("inference", ports=("port", "control_port"), has_schema=False),
)
