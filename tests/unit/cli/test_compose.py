"""deploy/compose: the parts of the Compose specification that it uses, held to it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, StringConstraints
from volary_cli.launcher import declared
from volary_cli.launcher.services import INFERENCE, SERVICES
from volary_inference.rest.settings import RestSettings
from volary_kit.documents import Strict
from volary_kit.settings import prefix_of

REPO = Path(__file__).parents[3]
FOLDER = REPO / "deploy" / "compose"
Words = list[str]
Duration = Annotated[str, StringConstraints(pattern=r"^(\d+(h|m|s|ms|us))+$")]
Mount = Annotated[str, StringConstraints(pattern=r"^[^:]+:/[^:]*(:ro|:rw)?$")]
Published = Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:\d+:\d+$")]  # loopback alone


class Build(Strict):
    context: str
    dockerfile: str
    args: dict[str, str]


class Need(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Strict):
    test: Words
    interval: Duration
    retries: Annotated[int, Field(ge=1)]


class Service(Strict):
    image: str | None = None
    build: Build | None = None
    command: Words | None = None
    entrypoint: Words | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    network_mode: str | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"] | None = None
    ports: list[Published] = Field(default_factory=list)
    volumes: list[Mount] = Field(default_factory=list)
    depends_on: dict[str, Need] = Field(default_factory=dict)
    healthcheck: Healthcheck | None = None
    stop_grace_period: Duration | None = None


class Compose(Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    services: dict[str, Service]
    volumes: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def compose() -> Compose:
    data = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    extensions = [key for key in data if key.startswith("x-")]
    return Compose.model_validate({k: v for k, v in data.items() if k not in extensions})


def test_every_service_of_the_mesh_is_there_and_runs_something(compose: Compose) -> None:
    assert {row.name for row in SERVICES} | {INFERENCE.name, "envoy", "rest", "traces"} <= set(
        compose.services
    )
    for name, service in compose.services.items():
        assert (service.image is None) != (service.build is None), name


def test_what_is_referred_to_exists(compose: Compose) -> None:
    for name, service in compose.services.items():
        for need, how in service.depends_on.items():
            needed = compose.services[need]
            if how.condition == "service_healthy":
                assert needed.healthcheck is not None, f"{name} waits for the health of {need}"
        for mount in service.volumes:
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), mount
            else:
                assert source in compose.volumes, mount
        if service.network_mode is not None:
            assert service.network_mode.removeprefix("service:") in compose.services


def test_images_are_built_from_folders_that_exist(compose: Compose) -> None:
    arguments = set(re.findall(r"^ARG (\w+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE))
    for service in compose.services.values():
        if service.build is None:
            continue
        root = (FOLDER / service.build.context).resolve()
        assert root == REPO
        assert (root / service.build.dockerfile).exists()
        assert set(service.build.args) <= arguments
        name = service.build.args["SERVICE"]
        folder = root / service.build.args.get("FOLDER", f"services/{name}")
        assert f'name = "volary-{name}"' in (folder / "pyproject.toml").read_text()


def test_every_setting_is_one_that_its_service_declares(compose: Compose) -> None:
    for name in [INFERENCE.name, *(row.name for row in SERVICES)]:
        fields = declared.settings_type(name).model_fields
        prefix = prefix_of(name)
        given = {
            key.removeprefix(prefix).lower(): value
            for key, value in compose.services[name].environment.items()
        }
        assert given.keys() <= fields.keys(), name
        peers = {field for field in fields if field.endswith("_address")} - {"temporal_address"}
        known = {f"{row.name}_address" for row in SERVICES if row.name != "workflows"}
        assert peers & known <= given.keys(), f"{name} is not told where its peers are"
        declared.environment(name, given)


def test_the_translators_settings_are_declared_and_lead_back_to_the_edge(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in compose.services["rest"].environment.items():
        monkeypatch.setenv(key, value)
    settings = RestSettings.read()
    listen = compose.services["gateway"].environment["VOLARY_GATEWAY_ENVOY_LISTEN"]
    assert settings.upstream_address.rpartition(":")[2] == listen.rpartition(":")[2]


def test_a_peer_is_looked_for_where_it_listens(compose: Compose) -> None:
    listens = {
        name: service.environment.get(f"{prefix_of(name)}PORT")
        for name, service in compose.services.items()
    }
    for name, service in compose.services.items():
        for key, value in service.environment.items():
            peer = key.removeprefix(prefix_of(name)).removesuffix("_ADDRESS").lower()
            if key.endswith("_ADDRESS") and peer in listens and peer != "temporal":
                assert value == f"127.0.0.1:{listens[peer]}", key


def test_envoys_bootstrap_is_filled_in(compose: Compose, tmp_path: Path) -> None:
    """Run the container's own script with a shell of this machine, Envoy replaced by cat."""
    envoy = compose.services["envoy"]
    assert envoy.entrypoint is not None
    script = envoy.entrypoint[-1].replace("$$", "$")
    script = script.replace("/etc/envoy/template.yaml", str(FOLDER / "envoy-bootstrap.yaml"))
    script = script.replace("/tmp/envoy.yaml", str(tmp_path / "envoy.yaml"))
    script = re.sub(r"exec envoy .*", f"cat {tmp_path / 'envoy.yaml'}", script)
    filled = subprocess.run(
        ["/bin/sh", "-c", script], env=envoy.environment | {"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    bootstrap = yaml.safe_load(filled)
    assert bootstrap["node"]["id"] == "volary"
    assert bootstrap["admin"]["address"]["socket_address"]["port_value"] == 7701
    assert "${" not in "".join(line for line in filled.splitlines() if not line.startswith("#"))
