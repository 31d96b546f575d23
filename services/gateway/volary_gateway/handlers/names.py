"""Resource names of gateway's API, read for the caller's project."""

from __future__ import annotations

from volary_kit.errors import InvalidArgument
from volary_kit.names import parse

from volary_gateway.domain.names import ModelName, VersionName

MODEL = "projects/{project}/models/{model}"
TRAFFIC = MODEL + "/traffic"
VERSION = MODEL + "/versions/{version}"
ROLLOUT = "projects/{project}/rollouts/{rollout}"
KEY = "projects/{project}/apiKeys/{key}"


def model_of(name: str, *, template: str = MODEL, field: str = "name") -> ModelName:
    """Return the model that a resource name names."""
    ids = parse(template, name, field=field)
    return ModelName(ids["project"], ids["model"])


def version_of(name: str) -> VersionName:
    """Return the version that a resource name names."""
    ids = parse(VERSION, name, field="name")
    number = ids["version"]
    if not number.isascii() or not number.isdigit() or len(number) > 18 or int(number) == 0:
        raise InvalidArgument("NAME_MALFORMED", "a version is a positive number", field="name")
    return VersionName(ids["project"], ids["model"], int(number))


def rollout_of(name: str) -> str:
    """Return the id of a rollout, empty for none."""
    return parse(ROLLOUT, name, field="rollout")["rollout"] if name else ""
