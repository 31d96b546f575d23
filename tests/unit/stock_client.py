"""A virtual environment with a stock `tritonclient`.

tritonclient registers the same `inference` symbols as the mesh's own code, so it runs in a
process of its own.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = ("tritonclient[grpc,http]==2.62.0", "numpy<3")
CACHE = Path(__file__).parents[2] / ".cache"
INSTALL_S = 180


def uv() -> str:
    """Return the uv of PATH, else the one that `./volary` fetched."""
    found = shutil.which("uv") or str(CACHE / "uv" / "bin" / "uv")
    assert Path(found).is_file(), "run ./volary once: it fetches uv where there is none"
    return found


def client_python() -> Path:
    """Return the interpreter of an environment with tritonclient, made once per checkout."""
    key = hashlib.sha256(f"{REQUIREMENTS}{sys.version}".encode()).hexdigest()[:12]
    folder = CACHE / f"tritonclient-{key}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        install("venv", "--clear", "--python", sys.executable, str(folder))
        install("pip", "install", "--python", str(python), *REQUIREMENTS)
        (folder / "complete").touch()
    return python


def install(*words: str) -> None:
    done = subprocess.run(
        [uv(), *words], capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
