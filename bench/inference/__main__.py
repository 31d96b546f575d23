"""`./volary bench inference [--quick] [--json]`; exit status 1 when a call costs too much CPU."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.cores import Cores, TooFewCores
from bench.inference import bad_input, lines, many, measuring, swapping
from bench.inference.measuring import FULL, QUICK, Small, Times
from bench.inference.peers import serving
from bench.inference.served import PYTHON, Served, echo, engines, served, write_bodies
from bench.load.generator import BenchError, Generator, built
from bench.report import Goal, Line, header, print_lines, say
from bench.results import Results

BOUNDS = Path(__file__).with_name("cpu_bounds.json")
PEERS_ABSENT = "Triton, MLServer and KServe are measured with --peers"


@dataclass(frozen=True)
class Bench:
    """One run: what is asked for, and what is there already."""

    generator: Generator
    folder: Path
    cores: Cores
    times: Times
    tokens: dict[str, int]
    asked: Collection[str]
    results: Results

    def is_due(self, *names: str) -> bool:
        """Say whether one of the lines is asked for and not measured yet."""
        return any(name in self.asked and not self.results.is_done(name) for name in names)

    async def run(self) -> str:
        """Measure what is due; return the name of the engine that was measured whole."""
        async with AsyncExitStack() as stack:
            running = await self._started(stack, *self._engines())
            for server in running:
                server.pause()
            needs_echo = self.is_due(*lines.SMALL, *lines.PEER, lines.SPEED_OF_PYTHON)
            reference = await self._echo() if running and needs_echo else None
            best = None
            for server in running:
                say(f"the {server.engine} engine")
                await server.resume()
                if server is running[0]:
                    best = await self._best(server, reference)
                if server.engine == PYTHON:
                    await self._python(server, reference)
                server.pause()
        if best is not None:
            await self._peers(best)
        return running[0].engine if running else ""

    def _engines(self) -> list[str]:
        """Return the engines that something due is measured of, the better one first."""
        others = [name for name in lines.LINES if name not in lines.PYTHON]
        found = engines()
        of_python = self.is_due(*lines.PYTHON)
        best = found[:1] if self.is_due(*others) else []
        return list(dict.fromkeys([*best, *([PYTHON] if of_python else [])]))

    async def _started(self, stack: AsyncExitStack, *names: str) -> list[Served]:
        """Start services; where the native one does not start, the Python engine is measured."""
        # one on each core while nothing is measured; both run on the server's core then
        places = (self.cores.server, self.cores.rest)
        starting = [
            await stack.enter_async_context(served(name, self.folder, self.cores, starts_on=place))
            for name, place in zip(names, places, strict=False)
        ]
        running: list[Served] = []
        for server in starting:
            try:
                await server.started()
            except BenchError as problem:
                if server.engine == PYTHON:
                    raise
                say(f"{problem}; the Python engine is measured alone")
            else:
                running.append(server)
        if names and not running:
            return await self._started(stack, PYTHON)
        return running

    async def _echo(self) -> Small:
        async with echo(self.folder, self.cores) as (target, pid):
            say("the reference")
            return await measuring.small(self.generator, target, pid, self.times)

    async def _best(self, server: Served, reference: Small | None) -> Small | None:
        """Measure the lines of the better engine; return its run of the small model, if any."""
        generator, times, results = self.generator, self.times, self.results
        own = None
        if reference is not None and self.is_due(*lines.SMALL, *lines.PEER):
            own = await self._small(server)
            bound = json.loads(BOUNDS.read_text()).get(server.engine)
            results.add(*measuring.small_lines(own, reference, bound))
            dropped = await server.events_dropped()
            calls = own.one.ok + own.many.ok
            results.add(
                Line("events_dropped", dropped, "events", Goal("<=", 0, "ours"), calls, "calls")
            )
        if self.is_due(*lines.HEAVY):
            limit = await measuring.raw_ort(self.folder, self.cores)
            heavy = await measuring.heavy(generator, server, times)
            results.add(measuring.heavy_line(heavy, limit))
            results.add(*await measuring.overload(generator, server, heavy.ok_per_s, times))
        while self.is_due(*lines.MIXED_UP):
            results.add(await measuring.mixed_up(generator, server, self.tokens["copy"], times))
        while self.is_due(*lines.SWAPS):
            results.add(*await swapping.swaps(generator, server, times))
        if self.is_due(*lines.BAD_INPUT):
            results.add(*await bad_input.by_grpc(server, *lines.BAD_INPUT, times=times))
        return own

    async def _python(self, server: Served, reference: Small | None) -> None:
        speed, *refusals, over_http = lines.PYTHON
        if reference is not None and self.is_due(speed):
            own = await self._small(server)
            self.results.add(
                Line(
                    speed, own.many.ok_per_s, "calls/s", Goal(">=", 1.5),
                    reference.many.ok_per_s, measuring.ECHO,
                )
            )  # fmt: skip
        if self.is_due(*refusals):
            self.results.add(*await bad_input.by_grpc(server, *refusals, times=self.times))
        if self.is_due(over_http):
            self.results.add(await bad_input.by_http(server, over_http, self.times))

    async def _small(self, server: Served) -> Small:
        return await measuring.small(self.generator, server.target("small"), server.pid, self.times)

    async def _peers(self, best: Small) -> None:
        found = serving.lines(
            self.generator, self.folder, self.cores, best.many, self.times, self.is_due
        )
        async for line in found:
            self.results.add(line)


async def measure(times: Times, asked: Collection[str], results: Results) -> str:
    """Measure the lines that are asked for; return the name of the engine."""
    cores = Cores.pick()
    os.sched_setaffinity(0, {cores.rest})  # and all that is started but the server
    with tempfile.TemporaryDirectory(prefix="volary-bench-") as name:
        folder = Path(name)
        tokens = write_bodies(folder)
        generator = await built(cores.rest)
        return await Bench(generator, folder, cores, times, tokens, asked, results).run()


def main() -> int:
    """Run the bench; return the exit status."""
    asked = _arguments()
    if asked.models:
        return many.bench(asked.models, as_json=asked.json)
    top = header("bench inference" + (" --quick" if asked.quick else ""))
    times = QUICK if asked.quick else FULL
    counts = dict.fromkeys(lines.MIXED_UP, times.rows) | {
        "version_swaps_failed": times.all_swaps,
        "version_swaps_wrong": 1,
    }
    results = Results(asked.results, counts)
    names = asked.line or [*lines.OWN, *(lines.PEER if asked.peers else ())]
    try:
        engine = asyncio.run(measure(times, names, results))
    except (BenchError, TooFewCores) as problem:
        say(f"error: {problem}")
        return 1
    top.append(
        f"engine: {engine or 'as measured before'}; server and load on one core each; {times}"
    )
    if not any(each.line in lines.PEER for each in results.lines):
        top.append(PEERS_ABSENT)
    order = list(lines.LINES)
    shown = sorted(results.lines, key=lambda each: order.index(each.line))
    print_lines(top, shown, as_json=asked.json)
    return 0 if all(each.is_met for each in shown if each.line == "cpu_us_per_call") else 1


def _arguments() -> argparse.Namespace:
    width = max(map(len, lines.LINES))
    parser = argparse.ArgumentParser(
        prog="volary bench inference",
        description=__doc__,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100),
        epilog="lines:\n"
        + "\n".join(f"  {name:{width}}  {text}" for name, text in lines.LINES.items()),
    )
    parser.add_argument("--quick", action="store_true", help="a minute, once all is built")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--models", type=int, metavar="N", help="so many models on one replica")
    parser.add_argument("--peers", action="store_true", help="Triton, MLServer, KServe beside ours")
    parser.add_argument(
        "--line", action="append", choices=lines.LINES, metavar="NAME", help="this one, repeatable"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="keep what is measured there, and go on where the run before ended",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
