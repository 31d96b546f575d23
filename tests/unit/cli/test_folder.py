"""The data folder: one supervisor, private secrets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from volary_cli.launcher.errors import MeshRunsError
from volary_cli.launcher.folder import LOG_BYTES, MeshFolder, tail

HOLD = """
import sys, os, pathlib, signal
from volary_cli.launcher.folder import MeshFolder
with MeshFolder(pathlib.Path(sys.argv[1])).held():
    print(os.getpid(), flush=True)
    signal.pause()
"""


def test_a_held_folder_is_refused_and_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    folder = MeshFolder(tmp_path / "mesh")
    words = [sys.executable, "-c", HOLD, str(folder.root)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert folder.holder() == pid
        with pytest.raises(MeshRunsError, match=str(folder.root)), folder.held():
            pass
        holder.kill()
    assert folder.holder() is None
    with folder.held():
        assert folder.holder() is not None


def test_a_folder_that_never_was_has_no_holder(tmp_path: Path) -> None:
    assert MeshFolder(tmp_path / "none").holder() is None


def test_secrets_are_made_once_and_are_their_owners_alone(tmp_path: Path) -> None:
    folder = MeshFolder(tmp_path)
    first = folder.secret("redis")
    assert len(first) == 48
    assert folder.secret("redis") == first != folder.secret("postgres")
    assert MeshFolder(tmp_path).known_secret("redis") == first
    assert folder.known_secret("nobody") is None
    assert (tmp_path / "secrets.json").stat().st_mode & 0o077 == 0


def test_a_state_cut_short_is_no_state(tmp_path: Path) -> None:
    folder = MeshFolder(tmp_path)
    assert folder.read_state() is None
    folder.write_state({"phase": "running"})
    assert folder.read_state() == {"phase": "running"}
    (tmp_path / "state.json").write_text('{"phase": "run')
    assert folder.read_state() is None


def test_a_long_log_begins_anew(tmp_path: Path) -> None:
    folder = MeshFolder(tmp_path)
    folder.make()
    log = folder.log("a")
    log.write_text("short\n")
    assert folder.turn_log("a").read_text() == "short\n"
    log.write_bytes(b"x" * (LOG_BYTES + 1))
    assert not folder.turn_log("a").exists()


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert tail(log) == ""
    log.write_text("".join(f"{i}\n" for i in range(100)))
    assert tail(log, 2) == "98\n99"
