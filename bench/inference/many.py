"""Thousands of small models on one replica: `./volary bench inference --models 2000`.

One process holds versions of so many models, each a perceptron of its own, with memory for a
twentieth of their graphs and none pinned. What is measured is not throughput but what the many
cost: how long each artifact's first load takes, how soon all are ready after a restart, how long
a call waits whose graph has to be read first, and what a version costs that nobody asks.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from volary.gateway.v1 import replica_pb2
from volary_inference.lifecycle.residence import COPIES, SESSION_BYTES
from volary_kit.testing import eventually

from bench.inference import graphs
from bench.report import Goal, Line, header, print_lines, say
from tests.unit.inference.peers import Keys, Peers
from tests.unit.inference.replica import Replica, raw_request

SHARE = 20  # of all graphs, one in so many fits into memory
READY_S = 3_600.0
DEADLINE_S = 5.0
AGAIN = 200
MIB = 1 << 20


@dataclass(frozen=True)
class Calls:
    """Latencies in milliseconds: of each model's first call, and of calls to one that is here."""

    first_ms: np.ndarray
    again_ms: np.ndarray


async def measure(folder: Path, count: int) -> list[Line]:
    """Start, ask each model once in an order of chance, start again; return the lines."""
    peers = Peers(Keys(folder))
    peers.registry.chunk_bytes = MIB  # as the registry does
    await peers.start()
    rows, size = _versions(peers, count)
    replica = Replica(folder, peers.keys, peers, None)
    budget = count // SHARE * (SESSION_BYTES + COPIES * size)
    try:
        _start(replica, budget)
        await replica.ready()
        empty = _memory(replica)
        say(f"{count} first loads")
        peers.gateway.want(*rows)
        first_s = await _until_ready(peers, count)
        before = _memory(replica)
        say("a call of each")
        calls = await _asked(replica, count)
        after, threads = _memory(replica), _process(replica).num_threads()
        await replica.stop()
        say("a restart")
        peers.gateway.reports.clear()
        _start(replica, budget)
        again_s = await _until_ready(peers, count)
    finally:
        replica.close()
        await peers.stop()
    sizes = ", ".join(f"{each / MIB:.0f}" for each in (empty, before, after))
    say(f"resident {sizes} MiB with nothing, when ready, after the calls; {threads} threads")
    return _lines(count, first_s, again_s, calls, after - empty)


def _versions(peers: Peers, count: int) -> tuple[list[replica_pb2.DesiredVersion], int]:
    """Return what gateway shall want, and the size of the largest graph."""
    rows, size = [], 0
    for number in range(count):
        graph = graphs.perceptron(graphs.SMALL, seed=number)
        size = max(size, len(graph))
        rows.append(peers.registry.add(1, graph, model=f"m{number}", production=True))
    return rows, size


def _start(replica: Replica, budget: int) -> None:
    replica.start(
        VOLARY_INFERENCE_MEMORY_BUDGET_BYTES=str(budget),
        VOLARY_INFERENCE_PIN_PRODUCTION="false",
    )


async def _until_ready(peers: Peers, count: int) -> float:
    """Return the seconds from now until each version is reported ready."""
    began_s = time.monotonic()

    async def all_are_ready() -> bool:
        reports = peers.gateway.reports
        rows = reports[-1].versions if reports else []
        return sum(row.state == replica_pb2.VERSION_STATE_READY for row in rows) == count

    await eventually(all_are_ready, within_s=READY_S, what="every version ready")
    return time.monotonic() - began_s


async def _asked(replica: Replica, count: int) -> Calls:
    stub = replica.v2()
    row = [[0.5] * graphs.SMALL[0]]

    async def ask(model: int) -> float:
        began_s = time.perf_counter()
        await stub.ModelInfer(raw_request(row, model=f"m{model}"), timeout=DEADLINE_S)
        return (time.perf_counter() - began_s) * 1e3

    order = np.random.default_rng(1).permutation(count).tolist()
    first = [await ask(model) for model in order]
    again = [await ask(order[-1]) for _ in range(AGAIN)]
    return Calls(np.array(first), np.array(again))


def _lines(count: int, first_s: float, again_s: float, calls: Calls, held: float) -> list[Line]:
    again = float(np.median(calls.again_ms))
    name = "a call whose graph is here"
    each = held / count / 1024
    return [
        Line("many_first_load_ms", first_s / count * 1e3, "ms", Goal("<=", 100, "ours")),
        Line("many_restart_s", again_s, "s", Goal("<=", 60, "ours"), first_s, "the first start"),
        Line(
            "many_first_call_p50_ms", float(np.median(calls.first_ms)), "ms",
            Goal("<=", 20, "ours"), again, name,
        ),
        Line(
            "many_first_call_p99_ms", float(np.percentile(calls.first_ms, 99)), "ms",
            Goal("<=", 100, "ours"), again, name,
        ),
        Line(
            "many_first_call_max_ms", float(calls.first_ms.max()), "ms",
            Goal("<=", 1_000, "ours"), again, name,
        ),
        Line("many_kib_a_version", each, "KiB", Goal("<=", 256, "ours")),
    ]  # fmt: skip


def _process(replica: Replica) -> psutil.Process:
    assert replica.process is not None
    return psutil.Process(replica.process.pid)


def _memory(replica: Replica) -> int:
    return _process(replica).memory_info().rss


def bench(count: int, *, as_json: bool) -> int:
    """Run and print; return the exit status."""
    top = header(f"bench inference --models {count}", "engine: python, which forgets graphs")
    with tempfile.TemporaryDirectory(prefix="volary-bench-") as folder:
        lines = asyncio.run(measure(Path(folder), count))
    print_lines(top, lines, as_json=as_json)
    return 0
