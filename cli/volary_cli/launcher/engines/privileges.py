"""Who a PostgreSQL server may run as: it refuses root.

A root launcher hands the server to an unprivileged account. That account may be unable to walk
down to the data folder or to the binaries (a home of mode 0700, say): no mode of anybody's folder
is widened for it. The server works in `/proc/self/cwd`, which needs no walk, and unreachable
binaries are copied to a place that everyone reaches.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

ACCOUNTS = ("postgres", "nobody")
REACHABLE = Path("/var/lib/volary/engines")


def unprivileged_user() -> str | None:
    """Return the account to drop to, None when this process is not root."""
    if os.geteuid() != 0:
        return None
    known = {account.pw_name for account in pwd.getpwall()}
    return next((name for name in ACCOUNTS if name in known), ACCOUNTS[-1])


def own_folder(folder: Path, user: str | None) -> Path:
    """Make a folder that its user alone may enter."""
    folder.mkdir(parents=True, exist_ok=True)
    if user is not None:
        shutil.chown(folder, user)
    folder.chmod(0o700)
    return folder


def reachable_copy(tree: Path, label: str, user: str | None) -> Path:
    """Return the folder itself, or a copy of it where any account may read and run it."""
    if user is None or _is_open_to_all(tree):
        return tree
    target = REACHABLE / label
    if not target.exists():
        REACHABLE.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=REACHABLE))
        shutil.copytree(tree, half, symlinks=True, dirs_exist_ok=True)
        _open_to_all(half)
        try:
            half.rename(target)
        except OSError:  # another launcher was faster
            shutil.rmtree(half)
    return target


def _is_open_to_all(path: Path) -> bool:
    resolved = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (resolved, *resolved.parents))


def _open_to_all(tree: Path) -> None:
    """Let any account read a copy, and run what its owner may run."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & stat.S_IXUSR else 0))
