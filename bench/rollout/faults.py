"""Every process lost at every state of a rollout: `python -m bench.rollout.faults`.

A real mesh on this machine, callers who never pause, one rollout a cell; the state is held by a
failpoint of the worker, and goes on the moment the process is lost. `--states` and `--lost` choose
cells, `--rows` keeps what was found over several runs and leaves out the cells that it has,
`--within-s` begins no cell after that time, `--document` writes the committed table of all rows.
Exit status 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from volary_workflows.rollout.messages import RolloutStatus, State

from bench.report import header, say
from tests.chaos.rollouts import (
    BY_TIME,
    ENGINES,
    LOST,
    RESUMED,
    STANDS,
    Loss,
    Outcome,
    Stand,
    rollouts,
)

PORT_BASE = 19_500
EVERY = (BY_TIME, *STANDS)
MORE = (RESUMED, *ENGINES)
HOW = """\
One mesh: Postgres, Redis, Temporal, registry, monitor, gateway, worker, Envoy, two replicas, each
a process that the launcher brings back. Four clients call through Envoy all the while. One rollout
a cell: a failpoint holds it at the state, the process is killed (kill -9) or frozen (SIGSTOP: a
second worker takes over, the first one thaws after the end), and the rollout goes on at once, while
the process is away. "worker resumed": frozen as it was about to unload the candidate, and thawed
when the next rollout of the same candidate stood at STAGING."""

NOTES = """\
`-`: not run for this table. The suite loses a process at each of the twelve states, in two rollouts
(`tests/chaos`), and loses and freezes the worker alone at every state, against a gateway of its own
making (`tests/unit/workflows/test_worker_process.py`). The machine was busy with other work: the
seconds are upper bounds, and hold up to 10 s that the launcher waits before it starts a process
again which ended time after time. What gateway or Envoy had not counted when it was lost is lost
for good: the step is written anew and begins its evidence again, which `volary rollout explain`
says. A step begins again as well when the counts of Envoy and gateway cannot be held against each
other for 5 s, as on a busy machine."""


@dataclass(frozen=True)
class Row:
    """What came of one cell; durations in seconds."""

    stand: str
    lost: str
    state: str
    seconds: float
    away: float
    writes: int
    calls: int
    hurt: int
    failed: int
    attempts: int
    unready: int
    broken: dict[str, int]
    problems: list[str]
    spent: str
    again: int = 0
    reason: str = ""

    @classmethod
    def of(cls, loss: Loss, outcome: Outcome) -> Row:
        """Flatten an outcome."""
        calls, history = outcome.calls, outcome.status.history
        return cls(
            stand=loss.stand.name,
            lost=loss.process,
            state=outcome.status.state,
            seconds=outcome.seconds,
            away=outcome.back_s,
            writes=outcome.writes,
            calls=calls.calls,
            hurt=calls.hurt,
            failed=len(calls.failed),
            attempts=outcome.seen.attempts,
            unready=len(outcome.seen.unready) + len(outcome.seen.bare),
            broken=dict(calls.broken),
            problems=outcome.problems,
            again=outcome.begun_again,
            reason=_why(outcome.status),
            spent=" ".join(f"{a.state} {b.at_s - a.at_s:.1f}" for a, b in pairwise(history)),
        )

    def __str__(self) -> str:
        text = (
            f"{self.stand:18} {self.lost:14} {self.state:12} {self.seconds:5.1f} s  {self.reason}  "
            f"away {self.away:4.1f} s  writes {self.writes}  calls {self.calls} hurt {self.hurt} "
            f"failed {self.failed}  attempts {self.attempts} unready {self.unready}"
        )
        return "\n  ! ".join([f"{text}\n    {self.spent}", *self.problems])


def _why(status: RolloutStatus) -> str:
    """Return the reason of an end, and what the judge said where it was the judge's."""
    said = "; ".join(status.look.reasons) if status.state == State.ROLLED_BACK else ""
    return f"{status.reason} ({said})" if said else status.reason


async def measured(losses: Sequence[Loss], port_base: int, until_s: float) -> AsyncIterator[Row]:
    """Yield how each rollout went, for as long as the time is not over."""
    with tempfile.TemporaryDirectory(prefix="volary-faults-") as folder:
        async with rollouts(Path(folder) / "mesh", port_base) as running:
            for loss in losses:
                if time.monotonic() < until_s:
                    is_resumed = loss.process == RESUMED
                    outcome = await (running.resume() if is_resumed else running.run(loss))
                    yield Row.of(loss, outcome)


def document(found: Sequence[Row], top: Sequence[str]) -> str:
    """Return the committed table."""
    hurt: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    for row in found:
        hurt[row.lost] += row.hurt
        broken.update({f"{row.lost}: {text}": n for text, n in row.broken.items()})
    cells = {(row.stand, row.lost): row for row in found}
    columns = [*LOST, *(each for each in MORE if any(lost == each for _, lost in cells))]
    whom = ", ".join(f"{n} by the loss of {lost}" for lost, n in hurt.items() if n) or "none"
    calls, failed = sum(row.calls for row in found), sum(row.failed for row in found)
    attempts, unready = sum(row.attempts for row in found), sum(row.unready for row in found)
    lines = [
        "# Rollouts under faults: every process lost at every state",
        "",
        "`python -m bench.rollout.faults --document docs/benchmarks/rollout-faults.md`",
        "",
        *[f"{each}  " for each in top],
        "",
        HOW,
        "",
        f"- {len(found)} rollouts; {sum(bool(row.problems) for row in found)} broke a promise",
        f"- {calls:,} calls; {failed} failed; needed another attempt of the client: {whom}",
        f"- {attempts:,} attempts of Envoy were held against what the replicas had reported",
        f"- {unready} of them went to a replica without that version ready",
        "",
        "Cells: how it ended, writes of traffic and how many of them because a step's records were",
        "incomplete for 5 s, seconds from start to end.",
        "",
        "| held at | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for stand in EVERY:
        shown = [_cell(cells.get((stand.name, lost))) for lost in columns]
        lines.append(f"| {stand.name} | " + " | ".join(shown) + " |")
    went_back = [row for row in found if row.state == State.ROLLED_BACK]
    if went_back:
        lines += ["", "Went back where it would have been promoted:", ""]
        lines += [f"- {r.stand}, {r.lost}: {r.reason or 'reason not kept'}" for r in went_back]
    lines += ["", NOTES]
    lines += ["", "Attempts of clients that failed, by the process that was lost:", ""]
    lines += [f"- {count} x {text}" for text, count in broken.most_common()] or ["- none"]
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    mark = " **broken**" if row.problems else ""
    again = f" ({row.again} again)" if row.again else ""
    return f"{row.state}, {row.writes}{again}, {row.seconds:.1f} s{mark}"


def kept_in(path: Path | None) -> list[Row]:
    """Return the rows of earlier runs."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def _is_cell(stand: Stand, process: str) -> bool:
    """Leave out what another cell shows: timers are Temporal's, and a late worker has one place."""
    is_timed, is_late = stand is BY_TIME, process == RESUMED
    return (not is_timed or process == "temporal") and (not is_late or stand.name == "STAGING")


async def run(asked: argparse.Namespace) -> list[Row]:
    """Run the chosen cells that have no row yet and keep each row as soon as it is there."""
    until_s = time.monotonic() + asked.within_s
    there = {(row.stand, row.lost) for row in kept_in(asked.rows)}
    losses = [
        Loss(stand, process)
        for stand in EVERY  # not one process after itself: the launcher would back off from it
        for process in asked.lost
        if stand.name in asked.states and (stand.name, process) not in there
        if _is_cell(stand, process)
    ]
    found: list[Row] = []
    if not losses:
        return found
    async for row in measured(losses, asked.port_base, until_s):
        say(str(row))
        found.append(row)
        if asked.rows:
            with asked.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    return found


def main() -> None:
    """Print a line a rollout; progress goes to standard error."""
    names = [stand.name for stand in EVERY]
    parser = argparse.ArgumentParser(prog="bench rollout, faults", description=__doc__)
    parser.add_argument("--states", nargs="*", choices=names, default=names)
    parser.add_argument("--lost", nargs="+", choices=(*LOST, *MORE), default=LOST)
    parser.add_argument("--port-base", type=int, default=PORT_BASE)
    parser.add_argument("--rows", type=Path, help="append each row, as a line of JSON")
    parser.add_argument("--within-s", type=float, default=math.inf)
    parser.add_argument("--document", type=Path, help="write the table to this file")
    asked = parser.parse_args()
    top = header("bench rollout, faults")
    found = asyncio.run(run(asked)) if asked.states else []
    if asked.document:
        asked.document.write_text(document(kept_in(asked.rows) or found, top))
    sys.exit(int(any(row.problems for row in found)))


if __name__ == "__main__":
    main()
