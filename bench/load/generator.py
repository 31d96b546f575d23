"""The load generator and a cheap replica: built with cargo when one is first needed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cores import on_core
from bench.report import say

CRATE = Path(__file__).resolve().parent
SHARED = CRATE.parents[1] / "services/inference/engine/src/threads.rs"
CACHE = CRATE.parents[1] / ".cache" / "bench"
LOAD, REPLICA = "volary-load", "volary-replica"
BUILD_S, MARGIN_S = 900, 60


class BenchError(Exception):
    """The benchmark cannot run here; the text says what to do."""


@dataclass(frozen=True)
class Target:
    """Where calls go and what they carry."""

    address: str
    path: str
    body: Path
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What one run of the generator saw."""

    ok: int
    failed: int
    seconds: float
    ok_per_s: float
    p50_us: int
    p99_us: int
    refused_p99_us: int
    codes: Mapping[str, int]
    versions: Mapping[str, int]
    failed_at: Mapping[str, int]  # by the second in which they began
    reasons: Mapping[str, int]  # `code: text` of those that failed
    connections_lost: int
    mixed_up: int


class Generator:
    """Runs the built generator, pinned to one core."""

    def __init__(self, binary: Path, core: int) -> None:
        self._binary = binary
        self._core = core

    async def run(
        self, target: Target, *, seconds: float, answers: Path | None = None, **options: float
    ) -> Outcome:
        """Send load for some seconds; options are those of the command line.

        `answers` is written with a line for each answered call: asked, answered, version.
        """
        words = ["--address", target.address, "--path", target.path, "--body", str(target.body)]
        for name, text in target.headers.items():
            words += ["--header", f"{name}={text}"]
        for name, value in ({"seconds": seconds} | options).items():
            words += [f"--{name.replace('_', '-')}", f"{value:g}"]
        words += [] if answers is None else ["--answers", str(answers)]
        with on_core(self._core):
            child = await asyncio.create_subprocess_exec(
                self._binary,
                *words,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        try:
            async with asyncio.timeout(seconds + MARGIN_S):
                output, problem = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode:
            text = problem.decode().strip() or f"it ended with {child.returncode}"
            raise BenchError(f"the load generator failed: {text}")
        found: dict[str, Any] = json.loads(output)
        return Outcome(**found)


async def built(core: int) -> Generator:
    """Return the generator, built anew when its sources have changed; raise BenchError."""
    return Generator(await binary(LOAD), core)


async def binary(name: str) -> Path:
    """Return where a built program lies; all are built anew when a source has changed."""
    target = CACHE / "load"
    found = {each: target / f"{each}-{_key()}" for each in (LOAD, REPLICA)}
    if not all(path.is_file() for path in found.values()):
        cargo = shutil.which("cargo")
        if cargo is None:
            raise BenchError(
                "the load generator is built with cargo, which is not on PATH: install Rust 1.82 "
                "or newer (https://rustup.rs) and run this again"
            )
        say("building the load generator: once, about two minutes")
        target.mkdir(parents=True, exist_ok=True)
        await _build(cargo, target)
        for each, path in found.items():
            (target / "release" / each).replace(path)
    return found[name]


async def _build(cargo: str, target: Path) -> None:
    words = ["build", "--release", "--locked", "--target-dir", str(target)]
    child = await asyncio.create_subprocess_exec(
        cargo, *words, cwd=CRATE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(BUILD_S):
        _, problem = await child.communicate()
    if child.returncode:
        raise BenchError(f"cargo could not build the load generator:\n{problem.decode()[-2_000:]}")


def _key() -> str:
    digest = hashlib.sha256()
    sources = sorted(CRATE.glob("src/*.rs"))
    for path in [CRATE / "Cargo.toml", CRATE / "Cargo.lock", *sources, SHARED]:
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
