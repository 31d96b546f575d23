"""Failed calls while traffic is pushed, replicas are replaced and killed, gateway is killed.

`python -m bench.rollout.killing --calls 1000000` is the long run alone: calls begin at a steady
rate whatever becomes of those before, none is tried again by the caller.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary_gateway.domain.names import ModelName

from bench.cores import Cores
from bench.load.generator import REPLICA, Outcome, Target, binary, built
from bench.report import Goal, Line, header, print_lines, say
from bench.rollout.chains import PATH
from bench.rollout.many import database, until_served_by
from bench.rollout.seats import Seats
from tests.unit.gateway.mesh import Mesh, mesh

WHOLE = 10_000
SHARES = (100, 1_000, 5_000, WHOLE, 0)
REPLICAS = 2
CALL_MS = 10_000
CONNECTIONS = 4
SPARE_S = 0.5


@dataclass(frozen=True)
class Trouble:
    """How many calls, at which rate, and how often the traffic changes meanwhile."""

    calls: int
    rate: float
    pushes: int

    @property
    def seconds(self) -> float:
        """How long the calls take to begin, with a little more for those that begin late."""
        return self.calls / self.rate + SPARE_S

    @property
    def rounds(self) -> int:
        """How often something is killed or replaced, after a round of pushes."""
        return max(1, self.pushes // len(SHARES))


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Mesh, Seats]]:
    """Run gateway, Postgres and Envoy with replicas of one model, its version 1 in production."""
    replica = await binary(REPLICA)
    async with database(folder) as url, mesh(folder, url, []) as running:
        await asyncio.wait_for(running.direct("bench").channel_ready(), 60)
        seats = Seats([replica], running, REPLICAS)
        try:
            await seats.join()
            await running.load(1, 2)
            await running.set(0, (1, WHOLE), production_version=1)
            await seats.settled()
            edge = v2_grpc.GRPCInferenceServiceStub(running.edge())
            await until_served_by(edge, running.api_key(), ModelName("default", running.model), 1)
            yield running, seats
        finally:
            await seats.close()


async def under_faults(
    folder: Path, running: Mesh, seats: Seats, trouble: Trouble
) -> dict[str, float]:
    """Send the calls; return how many failed, and what was done meanwhile."""
    body = folder / "call"
    body.write_bytes(v2.ModelInferRequest(model_name=running.model).SerializeToString())
    target = Target(f"127.0.0.1:{running.edge_port}", PATH, body, dict(running.api_key()))
    generator = await built(Cores.pick().rest)
    options = {"connections": CONNECTIONS, "timeout_ms": CALL_MS, "warmup": 0}
    calling = asyncio.create_task(
        generator.run(target, seconds=trouble.seconds, rate=trouble.rate, **options)
    )
    done = await make_trouble(running, seats, trouble)
    outcome = await calling
    if outcome.failed:
        say(f"calls by code: {dict(outcome.codes)}; connections lost: {outcome.connections_lost}")
        say(f"failed by second of their beginning: {dict(outcome.failed_at)}")
        say(f"why: {dict(outcome.reasons)}")
    return figures(outcome) | {f"{name}_under_faults": n for name, n in done.items()}


def figures(outcome: Outcome) -> dict[str, float]:
    """Return what became of the calls."""
    return {
        "failed_calls_under_faults": outcome.failed,
        "calls_under_faults": outcome.ok + outcome.failed,
        "calls_per_s_under_faults": outcome.ok_per_s,
        "p99_ms_under_faults": outcome.p99_us / 1e3,
    }


async def make_trouble(running: Mesh, seats: Seats, trouble: Trouble) -> Counter[str]:
    """Push, then kill or replace, in turn, spread over all of the time."""
    began = time.monotonic()
    generation, done = (await running.get()).generation, Counter[str]()
    for at in range(trouble.rounds):
        for place, share in enumerate(SHARES):
            due = began + trouble.seconds * (at + place / len(SHARES)) / trouble.rounds
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if place == 1:
                before_s = time.monotonic() - began
                lost = await _lose(running, seats, at)
                say(f"{before_s:6.1f} to {time.monotonic() - began:6.1f} s: {', '.join(lost)}")
                done.update(lost)
            after = await running.set(generation, (2, share), (1, WHOLE - share))
            generation = after.generation
            done["pushes"] += 1
    return done


async def _lose(running: Mesh, seats: Seats, at: int) -> list[str]:
    """Kill a replica, kill the control plane, or put others in the place of all replicas."""
    if at % 3 == 0:
        await seats.kill_and_restart(at // 3)
        return ["replicas_killed"]
    if at % 3 == 1:
        running.kill_gateway()
        running.start_gateway()
        await running.get()
        return ["gateways_killed"]
    await seats.replace_all()
    return ["replicas_replaced"] * REPLICAS


def lines_of(found: dict[str, float], calls: int) -> list[Line]:
    """Return the two lines."""
    return [
        Line(
            "failed_calls_under_faults",
            found["failed_calls_under_faults"],
            "calls",
            Goal("<=", 0, "ours"),
        ),
        Line("calls_under_faults", found["calls_under_faults"], "calls", Goal(">=", calls, "ours")),
    ]


async def alone(folder: Path, trouble: Trouble) -> dict[str, float]:
    """Run nothing but this."""
    async with serving(folder) as (running, seats):
        return await under_faults(folder, running, seats, trouble)


def main() -> None:
    """Print the two lines; what was done is in the header."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=2_000.0, help="calls a second")
    parser.add_argument("--pushes", type=int, default=200)
    parser.add_argument("--json", action="store_true", dest="as_json")
    asked = parser.parse_args()
    top = header("bench rollout, calls under faults")
    trouble = Trouble(asked.calls, asked.rate, asked.pushes)
    with tempfile.TemporaryDirectory(prefix="volary-bench-") as folder:
        found = asyncio.run(alone(Path(folder), trouble))
    notes = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print_lines([*top, notes], lines_of(found, asked.calls), as_json=asked.as_json)


if __name__ == "__main__":
    main()
