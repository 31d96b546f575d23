"""`./volary bench inference [--quick] [--json]`; exit status 1 when a call costs too much CPU."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from bench.cores import Cores, TooFewCores
from bench.inference import many, measuring
from bench.inference.measuring import FULL, QUICK, Small, Times
from bench.inference.peers import serving
from bench.inference.served import PYTHON, Served, echo, engines, served, write_bodies
from bench.load.generator import BenchError, Generator, built
from bench.report import Goal, Line, header, print_lines, say

BOUNDS = Path(__file__).with_name("cpu_bounds.json")
PEERS_ABSENT = "Triton, MLServer and KServe are measured with --peers"


async def measure(folder: Path, times: Times, *, with_peers: bool) -> tuple[str, list[Line]]:
    """Return the name of the engine that was measured and every line."""
    cores = Cores.pick()
    generator = await built(cores.rest)
    tokens = write_bodies(folder)
    async with echo(folder, cores) as (target, pid):
        say("the reference")
        reference = await measuring.small(generator, target, pid, times)
    limit = await measuring.raw_ort(folder, cores)
    lines: list[Line] = []
    measured, best = "", None
    for engine in engines():
        is_first = not measured
        try:
            async with served(engine, folder, cores) as server:
                say(f"the {engine} engine")
                own = await measuring.small(generator, server.target("small"), server.pid, times)
                if is_first:
                    best = own.many
                    lines = await _own(generator, server, reference, own, limit, tokens, times)
        except BenchError as problem:
            if engine == PYTHON:
                raise
            say(f"{problem}; the Python engine is measured alone")
            continue
        measured = measured or engine
    lines.append(_python_line(own, reference))
    if with_peers and best is not None:
        lines += await serving.lines(generator, folder, cores, best, times)
    return measured, lines


async def _own(
    generator: Generator,
    server: Served,
    reference: Small,
    own: Small,
    limit: float,
    tokens: dict[str, int],
    times: Times,
) -> list[Line]:
    bound = json.loads(BOUNDS.read_text()).get(server.engine)
    heavy = await measuring.heavy(generator, server, times)
    return [
        *measuring.small_lines(own, reference, bound),
        measuring.heavy_line(heavy, limit),
        *await measuring.overload(generator, server, heavy.ok_per_s, times),
        await measuring.mixed_up(generator, server, tokens["copy"], times),
        *await measuring.swaps(generator, server, times),
    ]


def _python_line(own: Small, reference: Small) -> Line:
    return Line(
        "python_engine_vs_aio_echo", own.many.ok_per_s, "calls/s", Goal(">=", 1.5),
        reference.many.ok_per_s, measuring.ECHO,
    )  # fmt: skip


def main() -> int:
    """Run the bench; return the exit status."""
    parser = argparse.ArgumentParser(prog="volary bench inference", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, once all is built")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--models", type=int, metavar="N", help="so many models on one replica")
    parser.add_argument("--peers", action="store_true", help="Triton, MLServer, KServe beside ours")
    asked = parser.parse_args()
    if asked.models:
        return many.bench(asked.models, as_json=asked.json)
    top = header("bench inference" + (" --quick" if asked.quick else ""))
    try:
        with tempfile.TemporaryDirectory(prefix="volary-bench-") as folder:
            engine, lines = asyncio.run(
                measure(Path(folder), QUICK if asked.quick else FULL, with_peers=asked.peers)
            )
    except (BenchError, TooFewCores) as problem:
        say(f"error: {problem}")
        return 1
    top.append(f"engine: {engine}; server and load on one core each")
    if not asked.peers:
        top.append(PEERS_ABSENT)
    print_lines(top, lines, as_json=asked.json)
    (cost,) = [line for line in lines if line.line == "cpu_us_per_call"]
    return 0 if cost.is_met else 1


if __name__ == "__main__":
    sys.exit(main())
