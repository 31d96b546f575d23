"""A stock V2 client works unchanged."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from . import graphs
from .peers import Peers
from .replica import Replica

REQUIREMENTS = ("tritonclient[grpc]==2.62.0", "numpy<3")
CALLS = Path(__file__).with_name("triton_calls.py")
CACHE = Path(__file__).parents[3] / ".cache"
INSTALL_S, CALLS_S = 180, 60


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


async def test_a_stock_tritonclient_works_blocking_streaming_and_async(
    replica: Replica, peers: Peers
) -> None:
    python = await asyncio.to_thread(client_python)
    peers.gateway.want(peers.registry.add(1, graphs.sigmoid_sum(), production=True))
    replica.start()
    await replica.ready()
    done = await asyncio.to_thread(
        subprocess.run,
        [python, CALLS, f"127.0.0.1:{replica.port}", replica.keys.api_key()],
        capture_output=True,
        text=True,
        timeout=CALLS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout == "all calls answered\n"
