"""What a change of traffic costs, through a real Envoy: `python -m bench.rollout.envoy`.

Gateway, Postgres, Envoy, a replica and the caller are processes of one machine: every time is an
upper bound of what gateway and Envoy take.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.report import Goal, Line, header, print_lines, say
from bench.rollout.aborts import aborts
from bench.rollout.chains import compared
from bench.rollout.killing import under_faults
from bench.rollout.many import Many, mesh_of_many

MODELS = 2_000
WARM = 5


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    pushes: int
    brakes: int
    aborts: int
    turns: int
    turn_s: float
    faults_s: float
    pushes_under_faults: int
    calls: int  # that the time under faults should be enough for


QUICK = Plan(100, 30, 5, turns=1, turn_s=1.0, faults_s=6.0, pushes_under_faults=5, calls=2_000)
FULL = Plan(
    1_000, 200, 50, turns=5, turn_s=3.0, faults_s=540.0, pushes_under_faults=200, calls=1_000_000
)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def at_many_models(folder: Path, plan: Plan) -> dict[str, float]:
    """Measure at 2,000 models, from the call to gateway until a caller sees it."""
    began = time.monotonic()
    async with mesh_of_many(folder, MODELS) as many:
        say(f"{MODELS} models serve: {time.monotonic() - began:.0f} s")
        found = await pushes(many, plan)
        found |= await compared(folder, many, plan.turns, plan.turn_s)
        aborted = await aborts(folder, many, plan.aborts)
    return found | {
        "temporal_abort_p50_ms": quantile(aborted, 0.5) * 1e3,
        "temporal_abort_ms": quantile(aborted, 0.99) * 1e3,
        "aborts": len(aborted),
    }


async def pushes(many: Many, plan: Plan) -> dict[str, float]:
    """Measure steps and brakes."""
    for at in range(WARM):
        await many.steps.step(at)
    before = many.received()
    taken = [await many.steps.step(n * 37) for n in range(plan.pushes)]
    received = many.received() - before
    braked = [await many.steps.brake(n * 41 + 1) for n in range(plan.brakes)]
    return {
        "push_p50_ms_2000_models": quantile(taken, 0.5) * 1e3,
        "push_p99_ms_2000_models": quantile(taken, 0.99) * 1e3,
        "push_bytes": received / len(taken),
        "brake_p50_ms": quantile(braked, 0.5) * 1e3,
        "brake_ms": quantile(braked, 0.99) * 1e3,
        "pushes": len(taken),
        "brakes": len(braked),
    }


async def measure(plan: Plan) -> dict[str, float]:
    """Return every figure by name."""
    parts = {
        "at many models": partial(at_many_models, plan=plan),
        "faults": partial(under_faults, seconds=plan.faults_s, pushes=plan.pushes_under_faults),
    }
    found: dict[str, float] = {}
    for name, part in parts.items():
        with tempfile.TemporaryDirectory(prefix="volary-bench-") as folder:
            began = time.monotonic()
            found |= await part(Path(folder))
            say(f"{name}: {time.monotonic() - began:.0f} s")
    return found


def lines_of(found: dict[str, float], plan: Plan) -> list[Line]:
    """Return the figures as lines, each with its goal."""

    def own(name: str, unit: str, goal: Goal) -> Line:
        return Line(name, found[name], unit, goal)

    return [
        own("push_p99_ms_2000_models", "ms", Goal("<=", 10, "ours")),
        own("push_bytes", "bytes", Goal("<=", 500, "ours")),
        own("brake_ms", "ms", Goal("<=", 10, "ours")),
        own("temporal_abort_ms", "ms", Goal("<=", 100, "ours")),
        own("failed_calls_under_faults", "calls", Goal("<=", 0, "ours")),
        own("calls_under_faults", "calls", Goal(">=", plan.calls, "ours")),
        Line(
            "envoy_added_p50_us",
            found["envoy_added_p50_us"],
            "us",
            Goal("<=", 1.0),
            found["minimal_added_p50_us"],
            "a chain of one router",
        ),
        Line(
            "envoy_throughput",
            found["envoy_per_s"],
            "calls/s",
            Goal(">=", 1.0),
            found["minimal_per_s"],
            "a chain of one router",
        ),
    ]


def main() -> None:
    """Print the lines; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    top = header("bench rollout, the lines of Envoy")
    found = asyncio.run(measure(plan))
    notes = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print_lines([*top, notes], lines_of(found, plan), as_json=options.as_json)


if __name__ == "__main__":
    main()
