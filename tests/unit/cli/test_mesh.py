"""The table of a whole mesh, without starting it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from volary_cli.launcher import identities as identities_module
from volary_cli.launcher.component import Kind, levels
from volary_cli.launcher.folder import MeshFolder
from volary_cli.launcher.identities import ISSUER, Identities
from volary_cli.launcher.loopback import free_port
from volary_cli.launcher.mesh import Mesh, Options
from volary_cli.launcher.services import SERVICES
from volary_cli.launcher.settings import LauncherSettings
from volary_kit.calls import DEFAULT_PROJECT
from volary_kit.clock import SystemClock
from volary_kit.errors import Unavailable
from volary_kit.identity import KEY_ISSUER, mint_api_key, parse_jwks

ENGINES = {"postgres", "redis", "temporal"}
BASE = 21_000


@pytest.fixture
def folder(tmp_path: Path) -> MeshFolder:
    folder = MeshFolder(tmp_path)
    folder.make()
    return folder


def mesh_of(folder: MeshFolder, *, replicas: int = 2, failpoints: bool = False) -> Mesh:
    settings = LauncherSettings.read()
    return Mesh(Options(folder, settings, BASE, replicas, has_failpoints=failpoints))


def test_every_component_is_there_and_can_be_ordered(folder: MeshFolder) -> None:
    components = mesh_of(folder).components()
    names = {component.name for component in components}
    assert names == ENGINES | {
        "traces", "registry", "ingest", "features", "trainer", "monitor", "gateway",
        "workflows", "inference-0", "inference-1", "envoy", "rest",
    }  # fmt: skip
    assert {each.name for each in components if each.kind is Kind.ENGINE} == ENGINES
    first, *_, last = levels(components)
    assert {each.name for each in first} == ENGINES
    assert "envoy" in {each.name for each in last}


def test_no_port_is_given_twice_and_none_leaves_the_span(folder: MeshFolder) -> None:
    components = mesh_of(folder, replicas=16).components()
    used = [port for component in components for port in component.ports.values()]
    assert len(set(used)) == len(used)
    assert all(BASE <= port < BASE + 100 for port in used)


def test_an_engine_that_exists_is_not_started(
    folder: MeshFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLARY_POSTGRES_URL", "postgresql://admin:secret@db.example:5433/mesh")
    monkeypatch.setenv("VOLARY_TEMPORAL_ADDRESS", "temporal.example:7233")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.example:4317")
    mesh = mesh_of(folder)
    components = {component.name: component for component in mesh.components()}
    assert {"postgres", "temporal", "traces"} & set(components) == set()
    assert "postgres" not in components["registry"].needs
    assert mesh.addresses["postgres"] == "db.example:5433"
    assert mesh.addresses["temporal_ui"] is None
    given = components["registry"].command().env
    assert given["VOLARY_REGISTRY_DATABASE_URL"].endswith("@db.example:5433/mesh")
    assert "admin" not in given["VOLARY_REGISTRY_DATABASE_URL"]
    assert given["VOLARY_REGISTRY_OTLP_ENDPOINT"] == "http://collector.example:4317"


def test_services_are_handed_their_own_settings(folder: MeshFolder) -> None:
    mesh = mesh_of(folder, failpoints=True)
    components = {component.name: component for component in mesh.components()}
    registry = components["registry"].command().env
    assert registry["VOLARY_REGISTRY_PORT"] == str(components["registry"].ports["data"])
    assert "volary_registry:" in registry["VOLARY_REGISTRY_DATABASE_URL"]
    replica = components["inference-1"].command().env
    assert replica["VOLARY_INFERENCE_INSTANCE"] == "1"
    assert replica["VOLARY_INFERENCE_FAILPOINTS"] == "true"
    assert replica["VOLARY_INFERENCE_GATEWAY_ADDRESS"].endswith(
        str(components["gateway"].ports["data"])
    )
    calm = {c.name: c for c in mesh_of(folder).components()}["inference-0"].command().env
    assert calm["VOLARY_INFERENCE_FAILPOINTS"] == "false"


async def test_keys_are_made_once_and_only_the_issuing_key_signs_api_keys(
    folder: MeshFolder,
) -> None:
    await mesh_of(folder).prepare()
    first = folder.jwks.read_text()
    keys = parse_jwks(first)
    assert {row.name for row in SERVICES} | {"inference", "launcher", "traces"} <= set(keys)
    issuers = [kid for kid, key in keys.items() if key.issuer == KEY_ISSUER]
    assert issuers == ["gateway-issuing"]
    await mesh_of(folder).prepare()
    assert folder.jwks.read_text() == first
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.keys.glob("*.pem"))


async def test_envoys_bootstrap_names_the_control_plane_and_nothing_else(
    folder: MeshFolder,
) -> None:
    components = {component.name: component for component in mesh_of(folder).components()}
    await components["envoy"].prepare()
    file = folder.engine("envoy") / "bootstrap.yaml"
    bootstrap = yaml.safe_load(file.read_text())
    (cluster,) = bootstrap["static_resources"]["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    socket = endpoint["endpoint"]["address"]["socket_address"]
    assert socket["port_value"] == components["gateway"].ports["data"]
    assert "listeners" not in bootstrap["static_resources"]
    assert file.stat().st_mode & 0o077 == 0


async def test_a_development_key_is_kept_until_its_last_day(
    folder: MeshFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities_module, "PATIENCE_S", 0)
    identities, clock, nobody = Identities(folder), SystemClock(), f"127.0.0.1:{free_port()}"

    def keep(days: float) -> str:
        token = mint_api_key(
            identities.key(ISSUER), "developer", ["viewer"],
            project=DEFAULT_PROJECT, life_s=days * 86_400, clock=clock,
        )  # fmt: skip
        folder.write_private(folder.api_key_file, token)
        return token

    kept = keep(days=30)
    await identities.ensure_api_key(nobody, clock)
    assert folder.api_key() == kept
    for days in (0.5, -1):
        keep(days)
        with pytest.raises(Unavailable):  # a new one is asked for
            await identities.ensure_api_key(nobody, clock)
    folder.write_private(folder.api_key_file, "not.a.token")
    with pytest.raises(Unavailable):
        await identities.ensure_api_key(nobody, clock)
