"""The released contract can only grow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[3] / "protos"
TRAFFIC = "volary/gateway/v1/traffic.proto"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the contract that may be broken."""
    ignored = shutil.ignore_patterns("generated", ".generating", ".buf-cache")
    return Path(shutil.copytree(PROTOS, tmp_path / "protos", ignore=ignored))


def release(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "release.py"), *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def test_the_contract_as_it_stands_is_compatible(copy: Path) -> None:
    done = release(copy)
    assert (done.returncode, "compatible" in done.stdout) == (0, True), done.stdout + done.stderr


def test_a_breaking_change_is_refused_and_the_image_is_kept(copy: Path) -> None:
    before = (copy / "released.binpb").read_bytes()
    text = (copy / TRAFFIC).read_text()
    assert "int64 generation = 2;" in text
    (copy / TRAFFIC).write_text(text.replace("int64 generation = 2;", "int32 generation = 2;"))

    done = release(copy, "--write")

    assert done.returncode == 1
    assert 'Field "2" with name "generation"' in done.stdout
    assert (copy / "released.binpb").read_bytes() == before


def test_a_new_field_is_accepted_and_renews_the_image(copy: Path) -> None:
    text = (copy / TRAFFIC).read_text()
    (copy / TRAFFIC).write_text(
        text.replace("int64 generation = 2;", "int64 generation = 2;\n  // New.\n  bool new = 99;")
    )
    before = (copy / "released.binpb").read_bytes()

    done = release(copy, "--write")

    assert done.returncode == 0, done.stdout
    assert (copy / "released.binpb").read_bytes() != before
