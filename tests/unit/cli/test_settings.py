"""What the launcher reads, and what it may hand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from volary_cli.launcher import declared
from volary_cli.launcher.errors import ConfigurationError, PortTakenError
from volary_cli.launcher.loopback import free_port
from volary_cli.launcher.ports import MAX_REPLICAS, PortPlan, require_free
from volary_cli.launcher.settings import SPAN, LauncherSettings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VOLARY_POSTGRES_URL", "mysql://somewhere/db"),
        ("VOLARY_REDIS_URL", "localhost:6379"),
        ("VOLARY_TEMPORAL_ADDRESS", "temporal"),
        ("VOLARY_PORT_BASE", "80"),
        ("VOLARY_PORT_BASE", "ninety"),
        ("VOLARY_SCALE_FALL_S", "-1"),
    ],
)
def test_a_broken_key_is_named(monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(ConfigurationError, match=key):
        LauncherSettings.read()


def test_waits_of_scaling_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLARY_SCALE_HIGH_MS", "2.5")
    monkeypatch.setenv("VOLARY_SCALE_LOW_MS", "0.5")
    monkeypatch.setenv("VOLARY_SCALE_FALL_S", "4")
    policy = LauncherSettings.read().scaling(1, 3)
    assert (policy.minimum, policy.maximum) == (1, 3)
    assert (policy.high_us, policy.low_us) == (2_500, 500)
    assert (policy.rise_s, policy.fall_s) == (3, 4)
    monkeypatch.setenv("VOLARY_SCALE_LOW_MS", "2.5")
    with pytest.raises(ConfigurationError, match="VOLARY_SCALE_LOW_MS"):
        LauncherSettings.read().scaling(1, 3)


def test_engines_that_exist_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLARY_POSTGRES_URL", "postgresql://u:p@db:5432/x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    settings = LauncherSettings.read()
    assert settings.postgres_url == "postgresql://u:p@db:5432/x"
    assert settings.otlp_endpoint == "http://collector:4317"
    assert settings.redis_url is None


def test_the_folder_is_the_option_else_the_key_else_per_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert LauncherSettings.read().mesh_folder() == tmp_path / "volary"
    monkeypatch.setenv("VOLARY_DATA_DIR", "/somewhere")
    assert LauncherSettings.read().mesh_folder() == Path("/somewhere")
    assert LauncherSettings.read().mesh_folder(tmp_path / "given") == tmp_path / "given"


def test_a_service_gets_what_it_declares_and_nothing_else() -> None:
    given = declared.environment("registry", {"port": 7_001, "flux_capacitor": 1})
    assert given == {"VOLARY_REGISTRY_PORT": "7001"}


@pytest.mark.parametrize(
    ("key", "value"), [("VOLARY_REGISTRY_LOG_LEVEL", "LOUD"), ("VOLARY_REGISTRY_PROT", "1")]
)
def test_a_broken_key_of_a_service_is_named_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(ConfigurationError, match=key):
        declared.environment("registry", {"port": 7_001})


def test_a_service_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigurationError, match="volary_nothing"):
        declared.environment("nothing", {})


def test_every_port_of_a_mesh_is_its_own() -> None:
    plan = PortPlan(9_000)
    used = [plan.at(i) for i in range(7)]
    used += [port for i in range(13) for port in plan.service(i).values()]
    used += [port for i in range(MAX_REPLICAS) for port in plan.replica(i).values()]
    assert len(set(used)) == len(used)
    assert max(used) < 9_000 + SPAN


def test_a_taken_port_is_told_with_its_holder() -> None:
    import os
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"{taken} \(envoy data\).*pid {os.getpid()}"):
            require_free({"envoy": {"data": taken}, "redis": {"data": free_port()}})
    require_free({"envoy": {"data": taken}})
