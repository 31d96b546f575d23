"""Every process lost at every state of a rollout: `python -m bench.rollout.faults`.

A real mesh on this machine, callers who never pause, one rollout a cell; the state is held by a
failpoint of the worker, and goes on the moment the process is lost. `--states` and `--lost` choose
cells, `--document` writes the committed table. Exit status 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from bench.report import header, say
from tests.chaos.rollouts import LOST, STANDS, Loss, Outcome, rollouts

PORT_BASE = 19_500


async def measure(states: Sequence[str], lost: Sequence[str], port_base: int) -> list[Outcome]:
    """Return how each rollout went."""
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="volary-faults-") as folder:
        async with rollouts(Path(folder) / "mesh", port_base) as running:
            for stand in STANDS:
                for process in lost if stand.name in states else ():
                    outcome = await running.run(Loss(stand, process))
                    found.append(outcome)
                    say(_line(outcome))
    return found


def _line(outcome: Outcome) -> str:
    status, calls, (loss,) = outcome.status, outcome.calls, outcome.losses
    text = (
        f"{loss.stand.name:18} {loss.process:14} {status.state:12} {outcome.seconds:5.1f} s  "
        f"away {outcome.back_s:4.1f} s  writes {outcome.writes}  calls {calls.calls} "
        f"hurt {calls.hurt} failed {len(calls.failed)}  attempts {outcome.seen.attempts} "
        f"unready {len(outcome.seen.unready)}"
    )
    spent = " ".join(
        f"{now.state} {after.at_s - now.at_s:.1f}" for now, after in pairwise(status.history)
    )
    return "\n  ! ".join([f"{text}\n    {spent}", *outcome.problems])


def document(found: Sequence[Outcome], top: Sequence[str]) -> str:
    """Return the committed table."""
    calls = sum(each.calls.calls for each in found)
    hurt = Counter[str]()
    for each in found:
        hurt[each.losses[0].process] += each.calls.hurt
    broken = Counter[str]()
    for each in found:
        lost = each.losses[0].process
        broken.update({f"{lost}: {text}": n for text, n in each.calls.broken.items()})
    rows = [
        "# Rollouts under faults: every process lost at every state",
        "",
        "`python -m bench.rollout.faults --document docs/benchmarks/rollout-faults.md`",
        "",
        *[f"{each}  " for each in top],
        "",
        "One mesh: Postgres, Redis, Temporal, registry, monitor, gateway, worker, Envoy, two",
        "replicas, each a process that the launcher brings back. Four clients call through Envoy",
        "all the while. One rollout a cell; a failpoint holds it at the state, the process is",
        "killed (kill -9) or frozen (SIGSTOP; a second worker takes over, the first thaws after",
        "the end), and the rollout goes on at once, while the process is away.",
        "",
        f"{len(found)} rollouts, {sum(bool(each.problems) for each in found)} of them broke a",
        f"promise. {calls:,} calls, {sum(len(each.calls.failed) for each in found)} failed;",
        f"{sum(hurt.values())} needed another attempt of the client: "
        + (", ".join(f"{n} by the loss of {lost}" for lost, n in hurt.items() if n) or "none")
        + ".",
        f"{sum(each.seen.attempts for each in found):,} attempts of Envoy were held against what",
        f"the replicas had reported: {sum(len(each.seen.unready) for each in found)} went to a",
        "replica without that version.",
        "",
        "Cells: how it ended, writes of traffic, seconds from start to end.",
        "",
        "| held at | " + " | ".join(LOST) + " |",
        "|---|" + "---|" * len(LOST),
    ]
    cells = {(each.losses[0].stand.name, each.losses[0].process): each for each in found}
    for stand in STANDS:
        shown = [_cell(cells.get((stand.name, lost))) for lost in LOST]
        rows.append(f"| {stand.name} | " + " | ".join(shown) + " |")
    rows += ["", "Attempts of clients that failed, by the process that was lost:", ""]
    rows += [f"- {count} x {text}" for text, count in broken.most_common()] or ["- none"]
    return "\n".join(rows) + "\n"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    mark = " **broken**" if outcome.problems else ""
    return f"{outcome.status.state}, {outcome.writes}, {outcome.seconds:.1f} s{mark}"


def main() -> None:
    """Print a line a rollout; progress goes to standard error."""
    names = [stand.name for stand in STANDS]
    parser = argparse.ArgumentParser(prog="bench rollout, faults", description=__doc__)
    parser.add_argument("--states", nargs="+", choices=names, default=names)
    parser.add_argument("--lost", nargs="+", choices=LOST, default=LOST)
    parser.add_argument("--port-base", type=int, default=PORT_BASE)
    parser.add_argument("--document", type=Path, help="write the table to this file")
    asked = parser.parse_args()
    top = header("bench rollout, faults")
    found = asyncio.run(measure(asked.states, asked.lost, asked.port_base))
    if asked.document:
        asked.document.write_text(document(found, top))
    sys.exit(int(any(each.problems for each in found)))


if __name__ == "__main__":
    main()
