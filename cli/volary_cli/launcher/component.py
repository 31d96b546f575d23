"""A component of the mesh: what it is, what it needs, how it is started and asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from volary_cli.launcher.processes import Command


class Kind(StrEnum):
    """What sort of process a component is."""

    ENGINE = "engine"
    SERVICE = "service"
    WORKER = "worker"
    EDGE = "edge"


class Health(StrEnum):
    """Whether a component does its work: `degraded` is alive and not ready after it was."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    DOWN = "down"


async def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Component:
    """One process of the mesh.

    `engine` says which of several implementations it runs, empty where there is one; `warning`
    why it is not the one that it should be.
    `prepare` runs before each start, `provision` once after it is ready for the first time;
    what needs this component waits for both.
    """

    name: str
    kind: Kind
    command: Callable[[], Command]
    is_ready: Callable[[], Awaitable[bool]]
    needs: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    version: Callable[[], str] = str
    engine: Callable[[], str] = str
    warning: Callable[[], str] = str
    prepare: Callable[[], Awaitable[None]] = nothing
    provision: Callable[[], Awaitable[None]] = nothing


class Condition:
    """What is known of a component at this moment."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.health = Health.DOWN
        self.pid: int | None = None
        self.restarts = 0
        self.version = ""
        self.started_s = 0.0
        self.ready_after_s: float | None = None
        self.usable = asyncio.Event()

    def row(self) -> dict[str, object]:
        """Return the component's entry of `status --json`."""
        return {
            "name": self.component.name,
            "kind": self.component.kind.value,
            "pid": self.pid,
            "ports": dict(self.component.ports),
            "health": self.health.value,
            "version": self.version,
            "restarts": self.restarts,
            "engine": self.component.engine(),
            "warning": self.component.warning(),
        }


class UnknownNeedError(Exception):
    """A component needs one that is not in the table, or needs itself by a detour."""


def levels(components: tuple[Component, ...]) -> list[list[Component]]:
    """Return the components in layers: each needs only what lies in earlier ones."""
    known = {component.name for component in components}
    placed: set[str] = set()
    layers: list[list[Component]] = []
    waiting = list(components)
    while waiting:
        layer = [c for c in waiting if set(c.needs) <= placed]
        if not layer:
            missing = {need for c in waiting for need in c.needs} - known
            names = ", ".join(c.name for c in waiting)
            raise UnknownNeedError(f"cannot order {names}: {missing or 'they form a ring'}")
        layers.append(layer)
        placed |= {c.name for c in layer}
        waiting = [c for c in waiting if c.name not in placed]
    return layers
