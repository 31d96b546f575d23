"""The root script on a machine that has next to nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from volary_cli.launcher.settings import LauncherSettings

REPO = Path(__file__).parents[3]
# what a minimal Linux has; no uv, pip, cargo, go or java among it
TOOLS = (
    "sh", "env", "uname", "find", "sort", "xargs", "cat", "cksum", "df", "awk", "date", "mkdir",
    "dirname", "readlink", "git",
)  # fmt: skip


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (folder / tool).symlink_to(found)
    return folder


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of what the repository holds, on the disk of uv's cache: its files are linked."""
    cache = LauncherSettings.read().cache
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        yield _copied(Path(folder) / "check out")  # a path with a space


def _copied(target: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPO, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source = REPO / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    return target


def run(script: Path, path: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    keep = ("HOME", "PIP_CERT", "SSL_CERT_FILE", "PIP_INDEX_URL", "UV_CACHE_DIR")
    inherited = {key: os.environ[key] for key in keep if key in os.environ}
    return subprocess.run(
        [str(script), *words],
        env=inherited | {"PATH": str(path)} | env,
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def base_python() -> Path:
    return Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


@pytest.mark.timeout(900)  # a cold cache has 2.5 GB to fetch
def test_a_bare_machine_gets_to_help_and_the_second_time_at_once(
    checkout: Path, bare_path: Path
) -> None:
    (bare_path / f"python3.{sys.version_info.minor}").symlink_to(base_python())
    first = run(checkout / "volary", bare_path, "--help")
    assert first.returncode == 0, first.stderr
    assert "Usage" in first.stdout
    assert "2.5 GB" in first.stderr.splitlines()[0]
    began_s = time.monotonic()
    second = run(checkout / "volary", bare_path, "--version")
    assert second.stdout.startswith("volary ")
    assert second.stderr == ""
    assert time.monotonic() - began_s < 5  # half a second on an idle machine
    fresh = checkout / "protos" / "volary" / "policy" / "v1" / "policy.proto"
    fresh.write_text(fresh.read_text() + "// one more line\n")
    third = run(checkout / "volary", bare_path, "--version")
    assert "setting up" in third.stderr


def test_without_any_python_and_uv_it_says_what_it_needs(tmp_path: Path, bare_path: Path) -> None:
    result = run(_script_alone(tmp_path), bare_path, "--help")
    assert result.returncode == 1
    assert "CPython 3.11 or 3.12" in result.stderr


def test_another_python_is_named_and_a_fitting_one_asked_of_uv(
    tmp_path: Path, bare_path: Path
) -> None:
    asked = tmp_path / "asked"
    _stub(bare_path / "python3", '[ "$1" = --version ] && echo "Python 3.9.2"; [ "$2" = "" ]')
    _stub(bare_path / "uv", f'echo "$*" >>{asked}; [ "$1" = --version ]')
    result = run(_script_alone(tmp_path), bare_path, "--help")
    assert result.returncode == 1
    assert "found only Python 3.9.2" in result.stderr
    assert "no CPython 3.11 or 3.12 could be had" in result.stderr
    assert asked.read_text().splitlines()[-1] == "python install 3.12"


def _script_alone(folder: Path) -> Path:
    (folder / "cli").mkdir()
    for name in ("uv.lock", "pyproject.toml", "cli/set_up.sh", "volary"):
        shutil.copy2(REPO / name, folder / name)
    return folder / "volary"


def _stub(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.timeout(300)
def test_uv_is_fetched_by_hand_where_python_has_no_ensurepip(tmp_path: Path) -> None:
    script = (REPO / "cli" / "set_up.sh").read_text()
    values = dict(
        line.split(" #")[0].split("=", 1)
        for line in script.splitlines()
        if line.startswith(("uv_version=", "uv_sha256="))
    )
    words = [values["uv_version"], values["uv_sha256"], str(tmp_path / "uv")]
    fetch = [sys.executable, str(REPO / "cli" / "fetch_uv.py")]
    subprocess.run([*fetch, *words], check=True, timeout=300, capture_output=True)
    told = subprocess.run(
        [str(tmp_path / "uv" / "bin" / "uv"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert values["uv_version"] in told
    wrong = subprocess.run(
        [*fetch, words[0], "0" * 64, str(tmp_path / "no")], capture_output=True, check=False
    )
    assert wrong.returncode != 0
    assert not (tmp_path / "no").exists()
