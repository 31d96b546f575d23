"""The command line: shapes for scripts, statuses, errors that say what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from temporalio.service import RPCError, RPCStatusCode
from typer.testing import CliRunner
from volary_cli.commands.exits import Exit
from volary_cli.commands.failures import explained
from volary_cli.launcher.folder import MeshFolder
from volary_cli.launcher.loopback import free_port
from volary_cli.launcher.orphans import orphans
from volary_cli.main import app

RUNNER = CliRunner()
KEYS = {
    "components",
    "gateway",
    "api_key",
    "api_key_header",
    "temporal",
    "temporal_ui",
    "postgres",
    "redis",
    "data_dir",
}


def volary(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does: errors explained, statuses kept."""
    return subprocess.run(
        [sys.executable, "-m", "volary_cli", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **env},
    )


def commands() -> list[list[str]]:
    import typer

    def walk(command: object, path: list[str]) -> list[list[str]]:
        children = getattr(command, "commands", {})
        found = [path]
        for name, child in children.items():
            found += walk(child, [*path, name])
        return found

    everything = walk(typer.main.get_command(app), [])
    return [path for path in everything if path != ["test"]]  # that becomes pytest, --help too


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_explains_itself(path: list[str]) -> None:
    result = RUNNER.invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_without_a_mesh_status_has_its_shape_and_its_own_exit_status(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["status", "--json", "--data-dir", str(tmp_path)])
    assert result.exit_code == Exit.NO_MESH
    status = json.loads(result.stdout)
    assert set(status) == KEYS
    assert status["components"] == []
    assert status["data_dir"] == str(tmp_path)


def test_what_ran_once_is_down_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    row = {"name": "redis", "kind": "engine", "pid": 1, "health": "ready", "ports": {}}
    status = dict.fromkeys(KEYS) | {"components": [row], "data_dir": str(tmp_path)}
    MeshFolder(tmp_path).write_state({"phase": "running", "seconds": {}, "status": status})
    result = RUNNER.invoke(app, ["status", "--json", "--data-dir", str(tmp_path)])
    (shown,) = json.loads(result.stdout)["components"]
    assert (shown["pid"], shown["health"]) == (None, "down")


def test_down_without_a_mesh_is_no_error(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["down", "--json", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["stopped"] is False


def test_logs_lists_and_prints(tmp_path: Path) -> None:
    folder = MeshFolder(tmp_path)
    folder.make()
    folder.log("redis").write_text("one\ntwo [bold]\n")
    listed = RUNNER.invoke(app, ["logs", "--json", "--data-dir", str(tmp_path)])
    assert json.loads(listed.stdout) == {"logs": ["redis"]}
    shown = RUNNER.invoke(app, ["logs", "redis", "-n", "1", "--data-dir", str(tmp_path)])
    assert shown.stdout == "two [bold]\n"
    missing = volary("logs", "nothing", "--data-dir", str(tmp_path))
    assert missing.returncode == Exit.FAILED
    assert "there are: redis" in missing.stderr


@pytest.mark.parametrize("words", [("production", "m"), ("alerts",), ("rollout", "status", "m")])
def test_what_needs_a_mesh_says_how_to_start_one(words: tuple[str, ...], tmp_path: Path) -> None:
    result = volary(*words, "--data-dir", str(tmp_path))
    assert result.returncode == Exit.NO_MESH
    assert "volary up" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_broken_project_is_told_without_a_mesh(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: Nothing\n")
    result = volary("apply", str(tmp_path))
    assert result.returncode == Exit.REFUSED
    assert "a.yaml" in result.stderr
    assert "line 1" in result.stderr


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_a_taken_port_is_named_and_nothing_is_left(tmp_path: Path, detach: tuple[str, ...]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        base = server.getsockname()[1]
        result = volary("up", *detach, "--data-dir", str(tmp_path), "--port-base", str(base))
    assert result.returncode == Exit.FAILED, result.stderr
    assert f"port {base} (envoy data) is taken" in result.stderr
    assert "--port-base" in result.stderr
    assert MeshFolder(tmp_path).holder() is None
    assert not orphans(tmp_path)


def test_a_broken_key_of_a_service_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    base = str(min(free_port(), 60_000))
    words = ("up", "--data-dir", str(tmp_path), "--port-base", base)
    result = volary(*words, VOLARY_TRAINER_RUN_TIMEOUT_S="soon")
    assert result.returncode == Exit.FAILED
    assert "VOLARY_TRAINER_RUN_TIMEOUT_S" in result.stderr
    assert not orphans(tmp_path)


def test_a_data_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = volary("up", "--data-dir", str(tmp_path / "file" / "mesh"))
    assert result.returncode == Exit.FAILED
    assert "Traceback" not in result.stderr
    assert str(tmp_path / "file") in result.stderr


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from volary_cli.launcher import running
    from volary_cli.launcher.errors import DiskFullError
    from volary_cli.launcher.mesh import Options
    from volary_cli.launcher.settings import LauncherSettings

    monkeypatch.setattr(running, "FREE_BYTES", 1 << 62)  # more than any disk has
    folder = MeshFolder(tmp_path)
    options = Options(folder, LauncherSettings.read(), 9_000, 1, has_failpoints=False)
    with pytest.raises(DiskFullError, match=str(tmp_path)):
        asyncio.run(running.MeshRun(options, lambda _: None).run())
    state = folder.read_state()
    assert state is not None
    assert state["phase"] == "failed"
    assert "disk" in state["error"]


def test_what_temporal_refuses_is_told_in_a_line() -> None:
    error = explained(RPCError("Timeout expired", RPCStatusCode.DEADLINE_EXCEEDED, b""))
    assert error is not None
    assert (str(error), error.status) == ("Temporal: Timeout expired", Exit.FAILED)
    assert explained(ValueError("a defect")) is None
