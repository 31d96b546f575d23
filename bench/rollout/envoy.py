"""What a change of traffic costs, through a real Envoy: `python -m bench.rollout.envoy`.

Control plane, client and the measuring loop share this machine with Envoy: every time is an
upper bound of what Envoy and gateway take. `--quick` takes about a minute.
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
from bench.rollout.killing import Trouble, serving, under_faults
from bench.rollout.killing import lines_of as lines_under_faults
from bench.rollout.many import Change, mesh_of_many

MODELS = 2_000
WARM = 5
PRINTED = Goal(">=", 0, "ours")  # a figure to know, without a bound


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    pushes: int
    brakes: int
    aborts: int
    turns: int
    turn_s: float
    trouble: Trouble


QUICK = Plan(100, 30, aborts=6, turns=1, turn_s=0.7, trouble=Trouble(12_000, 2_000.0, 15))
FULL = Plan(1_000, 200, aborts=100, turns=5, turn_s=3.0, trouble=Trouble(1_000_000, 2_000.0, 200))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def pushes(folder: Path, plan: Plan) -> dict[str, float]:
    """Measure steps and brakes at 2,000 models, from the call to gateway until a caller sees it."""
    async with mesh_of_many(folder, MODELS) as many:
        for at in range(WARM):
            await many.steps.step(at)
        before = many.received()
        taken = [await many.steps.step(n * 37) for n in range(plan.pushes)]
        received = many.received() - before
        braked = [await many.steps.brake(n * 41 + 1) for n in range(plan.brakes)]
    return {
        "push_p50_ms_2000_models": quantile([each.seconds for each in taken], 0.5) * 1e3,
        "push_p99_ms_2000_models": quantile([each.seconds for each in taken], 0.99) * 1e3,
        "push_until_a_call_began_p99_ms": quantile([each.begun_s for each in taken], 0.99) * 1e3,
        "push_bytes": received / len(taken),
        "brake_p50_ms": quantile([each.seconds for each in braked], 0.5) * 1e3,
        "brake_ms": quantile([each.seconds for each in braked], 0.99) * 1e3,
        "pushes": len(taken),
        "brakes": len(braked),
        **by_stage("push", taken),
        **by_stage("brake", braked),
    }


def by_stage(what: str, changes: Sequence[Change]) -> dict[str, float]:
    """Return the median and the 99th percentile of each stage."""
    found: dict[str, float] = {}
    for stage in changes[0].stages:
        taken = [change.stages[stage] * 1e3 for change in changes]
        found[f"{what}_{stage}_p50_ms"] = quantile(taken, 0.5)
        found[f"{what}_{stage}_p99_ms"] = quantile(taken, 0.99)
    return found


async def at_one_model(folder: Path, plan: Plan) -> dict[str, float]:
    """Measure what Envoy adds, aborts through Temporal, and calls while everything is lost."""
    async with serving(folder) as (running, seats):
        found = await compared(folder, running, seats.addresses[0], plan.turns, plan.turn_s)
        aborted = await aborts(folder, running, plan.aborts)
        found |= {
            "temporal_abort_p50_ms": quantile(aborted, 0.5) * 1e3,
            "temporal_abort_ms": quantile(aborted, 0.99) * 1e3,
            "aborts": len(aborted),
        }
        await running.load(2)  # each abort let go of it
        return found | await under_faults(folder, running, seats, plan.trouble)


async def measure(plan: Plan) -> dict[str, float]:
    """Return every figure by name."""
    parts = {"2,000 models": partial(pushes, plan=plan), "one": partial(at_one_model, plan=plan)}
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

    minimal = "a chain of the router alone"
    return [
        own("push_p99_ms_2000_models", "ms", Goal("<=", 10, "ours")),
        own("push_bytes", "bytes", Goal("<=", 500, "ours")),
        own("brake_ms", "ms", Goal("<=", 10, "ours")),
        own("temporal_abort_ms", "ms", Goal("<=", 100, "ours")),
        *lines_under_faults(found, plan.trouble.calls),
        Line(
            "envoy_added_p50_us",
            found["envoy_added_p50_us"],
            "us",
            PRINTED,
            found["minimal_added_p50_us"],
            minimal,
        ),
        Line(
            "envoy_throughput_ratio",
            found["envoy_per_s"],
            "calls/s",
            PRINTED,
            found["minimal_per_s"],
            minimal,
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
