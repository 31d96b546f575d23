"""Names of models, versions and routes, as they stand in scopes, headers and clusters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

CLUSTER = re.compile(r"version/([^/]+)/([^/]+)/([0-9]+)")
ROUTE_PARTS = 4
# Envoy's names of counters: a dot ends a part of them, and a colon becomes an underscore
ESCAPED = str.maketrans({".": "%2E", ":": "%3A"})
NONE = "-"  # stands for an empty part of a route name


@dataclass(frozen=True, order=True, slots=True)
class ModelName:
    """A model of a project: the key of its traffic and of its scope at the edge."""

    project: str
    model: str

    def __str__(self) -> str:
        return f"projects/{self.project}/models/{self.model}"

    @property
    def scope(self) -> str:
        """The scope key at the edge: a tenant never reaches another's model of the same id."""
        return f"{self.project}/{self.model}"


@dataclass(frozen=True, order=True, slots=True)
class VersionName:
    """One version of a model."""

    project: str
    model: str
    version: int

    def __str__(self) -> str:
        return f"projects/{self.project}/models/{self.model}/versions/{self.version}"

    @classmethod
    def of(cls, model: ModelName, version: int) -> Self:
        """Name a version of a model."""
        return cls(model.project, model.model, version)

    @classmethod
    def of_cluster(cls, text: str) -> Self | None:
        """Return the version that a cluster serves, None for any other cluster."""
        match = CLUSTER.fullmatch(text)
        if match is None:
            return None
        return cls(unquote(match[1]), unquote(match[2]), int(match[3]))

    @property
    def parent(self) -> ModelName:
        """The model it is a version of."""
        return ModelName(self.project, self.model)

    @property
    def cluster(self) -> str:
        """The name of its cluster in Envoy, by which its calls are counted."""
        return f"version/{self.project}/{self.model}/{self.version}".translate(ESCAPED)


@dataclass(frozen=True, order=True, slots=True)
class RouteName:
    """`{model}/{rollout}/{step}/{generation}`: the name under which evidence is counted."""

    model: str
    rollout: str
    step: str
    generation: int

    def __str__(self) -> str:
        return f"{self.model}/{self.rollout or NONE}/{self.step or NONE}/{self.generation}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the parts of a route name, None when it is not one."""
        parts = text.split("/")
        if len(parts) != ROUTE_PARTS or not parts[3].isdigit():
            return None
        model, rollout, step, generation = parts
        return cls(model, _some(rollout), _some(step), int(generation))


def _some(part: str) -> str:
    return "" if part == NONE else part
