"""The services under contract: one line each, and one for each further engine of a service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Contracted:
    """A service, the settings that name its ports, and the engines that it is given.

    `engine` is which of its own engines answers, where it has several.
    """

    name: str
    ports: tuple[str, ...] = ("port",)
    has_schema: bool = True
    engine: str = ""

    @property
    def label(self) -> str:
        """What reports call it."""
        return f"{self.name}-{self.engine}" if self.engine else self.name

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings that make it the one under test."""
        return {"engine": self.engine} if self.engine else {}


SERVICES = (
    Contracted("registry"),
    Contracted("ingest"),
    Contracted("features"),
    Contracted("trainer"),
    Contracted("monitor"),
    Contracted("gateway"),
    Contracted("inference", ports=("port", "control_port"), has_schema=False, engine="python"),
)
UNDER_TEST = (*SERVICES, replace(SERVICES[-1], engine="native"))
