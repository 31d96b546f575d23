"""The identity of a run: two runs of the same identity give the same weights, bit for bit."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

# what can change a bit of the result
PACKAGES = ("torch", "numpy", "onnx", "onnxscript", "polars", "pyarrow", "safetensors")


def identity_of(parts: Mapping[str, str]) -> str:
    """Return the hash of config, code, data, environment, seeds, threads and device."""
    text = json.dumps(dict(sorted(parts.items())), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def code_hash(folder: Path) -> str:
    """Return the hash of every Python file below a folder, by name and bytes."""
    hashed = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        hashed.update(str(path.relative_to(folder)).encode() + b"\0")
        hashed.update(hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def environment_hash(packages: Iterable[str] = PACKAGES) -> str:
    """Return the hash of the interpreter, the machine's kind and the packages' versions."""
    versions = [f"{name}=={metadata.version(name)}" for name in sorted(packages)]
    machine = [platform.python_version(), platform.machine(), platform.system()]
    return hashlib.sha256("\n".join([*machine, *versions]).encode()).hexdigest()
