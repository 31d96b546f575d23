"""Builds the native engine into the virtual environment that runs this, where cargo is at hand.

    .venv/bin/python services/inference/engine/build.py

Keyed by a hash of its sources: unchanged it takes milliseconds. Without cargo, or when the build
fails, the Python engine serves; `volary status` says so. With `CI` set both are an error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / ".cache" / "inference-engine"
CONTRACT = ROOT / "protos" / "generated" / "volary_contract" / "contract.binpb"
PROTOS = ("inference", "volary/events", "volary/values", "volary/otlp")  # what build.rs reads of it
LIBRARY = "libvolary_inference_engine.so"
MODULE = "volary_inference_engine.abi3.so"
WHY = "volary_inference_engine.why"  # beside the module: why there is none
TOOLCHAIN = "1.82"


def main() -> int:
    """Build or copy the module; return the exit status."""
    site = Path(sysconfig.get_paths()["purelib"])
    key = key_of_sources()
    built = CACHE / f"{key}.so"
    stamp = site / f"{MODULE}.key"
    if stamp.is_file() and stamp.read_text() == key and (site / MODULE).is_file():
        return 0
    problem = "" if built.is_file() else build(built)
    if problem:
        return without(site, problem)
    fresh = site / f".{MODULE}.{os.getpid()}"
    shutil.copy2(built, fresh)
    fresh.replace(site / MODULE)  # a process that has the old one open keeps it
    stamp.write_text(key)
    (site / WHY).unlink(missing_ok=True)
    return 0


def key_of_sources() -> str:
    """Return a hash of all that the module is made of."""
    sources = [HERE / "Cargo.toml", HERE / "Cargo.lock", HERE / "build.rs"]
    sources += sorted((HERE / "src").rglob("*.rs"))
    for folder in PROTOS:
        sources += sorted((ROOT / "protos" / folder).rglob("*.proto"))
    digest = hashlib.sha256()
    for path in sources:
        data = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:32]


def build(built: Path) -> str:
    """Compile the module to `built`; return what went wrong, empty if nothing did."""
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if cargo is None:
        return f"cargo is not there: install Rust {TOOLCHAIN} or later (https://rustup.rs)"
    say("building the native inference engine: 1 to 3 minutes, once")
    target = CACHE / "target"
    began_s = time.monotonic()
    command = [cargo, "build", "--release", "--locked", "--features", "extension"]
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "VOLARY_CONTRACT": str(CONTRACT),
        "PYO3_PYTHON": sys.executable,
        "CARGO_NET_RETRY": "2",
    }
    try:
        # its progress goes to the terminal, and nothing to the output of the command that is run
        subprocess.run(command, cwd=HERE, env=environment, stdout=sys.stderr, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the build failed: {error}"
    fresh = built.with_suffix(f".{os.getpid()}")
    shutil.copy2(target / "release" / LIBRARY, fresh)
    fresh.replace(built)
    say(f"built the native inference engine in {time.monotonic() - began_s:.0f} s")
    return ""


def without(site: Path, problem: str) -> int:
    """Leave no module of other sources behind; say why there is none."""
    for name in (MODULE, f"{MODULE}.key"):
        (site / name).unlink(missing_ok=True)
    (site / WHY).write_text(problem + "\n")
    is_error = bool(os.environ.get("CI"))
    say(f"{'error' if is_error else 'warning'}: no native inference engine: {problem}")
    return 1 if is_error else 0


def say(text: str) -> None:
    """Tell the person at the terminal."""
    sys.stderr.write(f"volary: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
