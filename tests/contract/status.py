"""What of the contract is not built: `docs/status.md`, made from running services.

python -m tests.contract.status            print it
python -m tests.contract.status --write    write docs/status.md
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
from volary_cli.launcher.engines import (
    PostgresEngine,
    RedisEngine,
    TemporalEngine,
    free_port,
    running,
)
from volary_kit.errors import Unimplemented
from volary_kit.policies import policies

from tests.contract.bad_input import plausible
from tests.contract.process import Engines, Keys, Running, start
from tests.contract.reflected import Rpc, call, rpcs
from tests.contract.services import SERVICES, Contracted

DOCUMENT = Path(__file__).parents[2] / "docs" / "status.md"
PATIENCE_S = 5.0
STREAM_S = 1.5
OF_THE_KIT = ("/grpc.health.", "/grpc.reflection.")  # answered by every service
PASSWORD = "status"
# RPCs of the contract that no service of ours answers, and who does
ELSEWHERE = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "the trace receiver",
}


def unimplemented(service: Running, keys: Keys) -> dict[str, bool]:
    """Return every RPC of a running service's own, and whether it answers UNIMPLEMENTED."""
    found: dict[str, bool] = {}
    for address in service.addresses:
        for rpc in rpcs(service.channel(address, keys.service_token())):
            if not rpc.name.startswith(OF_THE_KIT):
                is_unbuilt = _is_unbuilt(service, address, keys, rpc)
                found[rpc.name] = found.get(rpc.name, True) and is_unbuilt
    return found


def _is_unbuilt(service: Running, address: str, keys: Keys, rpc: Rpc) -> bool:
    channel = service.channel(address, keys.credential(rpc.policy.allow))
    patience_s = STREAM_S if rpc.policy.unbounded else PATIENCE_S
    # empty for what the generated base answers, plausible for a handler that says so itself
    requests = (b"", plausible(rpc.request_type).SerializeToString())
    return any(isinstance(call(channel, rpc, r, patience_s), Unimplemented) for r in requests)


def document(found: Mapping[str, Mapping[str, bool]]) -> str:
    """Return the text of `docs/status.md` for the RPCs of each service."""
    found = {service.name: found[service.name] for service in SERVICES}
    served = {name for by_service in found.values() for name in by_service}
    missing = sorted(
        name
        for name in set(policies()) - served - set(ELSEWHERE)
        if not name.startswith(OF_THE_KIT)
    )
    lines = [
        "# What is not built yet",
        "",
        "Written by `python -m tests.contract.status --write`, which starts every service, walks",
        "its descriptors and calls every RPC with a credential. A test fails when this file and",
        "the running services differ.",
        "",
        "| service | RPCs | answer UNIMPLEMENTED |",
        "|---|---|---|",
        *(f"| {name} | {len(rows)} | {sum(rows.values())} |" for name, rows in found.items()),
        "",
        "## UNIMPLEMENTED",
        "",
        *_listed(found),
        "",
        "## In the contract and served by no service",
        "",
        *(_bullets(missing) or ["None."]),
        "",
        "## In the contract and served elsewhere",
        "",
        "- health and reflection (v1): every service",
        *(f"- `{name}`: {who}" for name, who in sorted(ELSEWHERE.items())),
        "",
        "## Written and not run",
        "",
        *UNRUN,
    ]
    return "\n".join(lines) + "\n"


UNRUN = (
    "- inference on TensorRT (`VOLARY_INFERENCE_TENSORRT`): written against the signatures of",
    "  `tensorrt_bindings` 11.2.1.2 and `cuda.bindings` 13. No GPU run has been made; tested are",
    "  its refusals, its cache of engines, what it says where there is no GPU, and its calls",
    "  against a stand-in that takes what those signatures take.",
    "- inference by onnxruntime's CUDA provider (`VOLARY_INFERENCE_CUDA`): written against",
    "  onnxruntime 1.31, which is installed without CUDA. No GPU run has been made; tested are its",
    "  refusals, and that nothing runs in its place.",
)


def _listed(found: Mapping[str, Mapping[str, bool]]) -> list[str]:
    lines: list[str] = []
    for service, rows in found.items():
        unbuilt = sorted(name for name, is_unbuilt in rows.items() if is_unbuilt)
        if unbuilt:
            lines += [f"### {service}", "", *_bullets(unbuilt), ""]
    return lines[:-1] or ["None."]


def _bullets(names: Iterable[str]) -> list[str]:
    return [f"- `{name}`" for name in names]


async def survey(folder: Path) -> str:
    """Start engines and every service in `folder`, and return the text of the document."""
    async with AsyncExitStack() as stack:
        postgres = PostgresEngine(folder / "postgres", free_port(), PASSWORD, {"fsync": "off"})
        redis = RedisEngine(folder / "redis", free_port(), PASSWORD)
        ports = free_port(), free_port(), free_port()
        temporal = TemporalEngine(folder / "temporal", *ports, cache=folder)
        for engine in (postgres, redis, temporal):
            await stack.enter_async_context(running(engine, folder / "engines.log"))
        keys = Keys(folder / "keys")
        found: dict[str, dict[str, bool]] = {}
        for service in SERVICES:
            url = await _new_database(postgres, service)
            engines = Engines(url, redis.url, temporal.address)
            found[service.name] = await asyncio.to_thread(_surveyed, service, engines, keys, folder)
        return document(found)


def _surveyed(service: Contracted, engines: Engines, keys: Keys, folder: Path) -> dict[str, bool]:
    own = start(service, engines, keys, folder / service.name)
    try:
        return unimplemented(own, keys)
    finally:
        own.stop()


async def _new_database(postgres: PostgresEngine, service: Contracted) -> str | None:
    if not service.has_schema:
        return None
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute(f'CREATE DATABASE "{service.name}"')
    finally:
        await connection.close()
    return postgres.url(database=service.name)


def main() -> None:
    """Print the document, or write it."""
    parser = argparse.ArgumentParser(description="What of the contract is not built.")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vs") as folder:
        text = asyncio.run(survey(Path(folder)))
    if options.write:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
