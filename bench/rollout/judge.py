"""What the judge risks and what it sees: `python -m bench.rollout.judge`.

Numbers of events, not times: the same on every machine, and the same in every run. The whole
table takes minutes; `--quick` draws a tenth of the runs in fewer cells, too few to show a bound
of 1 % where the truth is close to it, and says so. `--document` writes the committed table;
`--rows` keeps the counts of the cells in a file, and takes those that are there as they are: the
table can be made in pieces, and the same command ends it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import beta

from bench.report import Goal, Line, header, print_lines, say
from bench.rollout.judge_cells import (
    ALPHA,
    CALLS_A_STEP,
    LOOKS_OF_NAIVE,
    LOOKS_OF_RANKS,
    POWER_RUNS,
    QUICK_RUNS,
    RAMP,
    RUNS,
    USERS,
    Cell,
    Power,
    cells,
    naive_ranks_stopped,
    naive_stopped,
    passed_by_users,
    power,
)

CONFIDENCE = 0.99
NAIVE_RATE = 0.05
REGRESSIONS = ((0.01, 5.0), (0.01, 3.0), (0.01, 2.0), (0.01, 1.5), (0.001, 10.0), (0.001, 3.0),
               (0.05, 2.0), (0.05, 1.5), (0.2, 1.5), (0.2, 1.25))  # fmt: skip
GOAL_EXPOSED = 150
PASS_RUNS = 1_000
CALLS_OF_EXPOSED = 2_000  # a step, of the whole model
COMMAND = "./volary bench rollout"


@dataclass(frozen=True)
class Counted:
    """How many runs of a cell were stopped."""

    cell: Cell
    stopped: int
    runs: int

    @property
    def upper(self) -> float:
        """Return the upper 99 % bound of the probability (Clopper and Pearson, 1934)."""
        return upper_bound(self.stopped, self.runs)


@dataclass(frozen=True)
class Measured:
    """Everything that a run of this bench found."""

    counted: list[Counted]
    powers: list[Power]
    exposed: Power
    naive: float
    passes: list[tuple[float, float, float]]  # sigma, share passed, share of users with an error
    naive_ranks: float = 0.0


def upper_bound(hits: int, runs: int) -> float:
    """Return the exact one-sided upper bound of a binomial probability."""
    if hits >= runs:
        return 1.0
    return float(beta.ppf(CONFIDENCE, hits + 1, runs - hits))


class Rows:
    """The counts of cells that were drawn before: an object a line."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        text = path.read_text() if path is not None and path.exists() else ""
        rows = [json.loads(line) for line in text.splitlines()]
        self._known = {(row["cell"], row["runs"]): int(row["stopped"]) for row in rows}

    def counted(self, cell: Cell, runs: int) -> Counted:
        """Return a cell's count, drawn unless it is known."""
        known = self._known.get((cell.name, runs))
        if known is not None:
            return Counted(cell, known, runs)
        found = Counted(cell, cell.stopped(runs), runs)
        if self._path is not None:
            row = {"cell": cell.name, "runs": runs, "stopped": found.stopped}
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return found


def measure(*, is_quick: bool, rows: Path | None = None) -> Measured:
    """Draw every cell and every regression."""
    runs, known = QUICK_RUNS if is_quick else RUNS, Rows(rows)
    counted = []
    for cell in cells(is_quick=is_quick):
        counted.append(known.counted(cell, runs))
        say(f"{cell.name}: {counted[-1].stopped} of {runs:,} stopped")
    power_runs = QUICK_RUNS // 2 if is_quick else POWER_RUNS
    # no line has the power of the other regressions: the committed document does
    powers = [
        power(rate, ratio, CALLS_A_STEP[rate], runs=power_runs)
        for rate, ratio in (() if is_quick else REGRESSIONS)
    ]
    exposed = power(0.01, 5.0, CALLS_OF_EXPOSED, runs=power_runs)
    passes = (
        []
        if is_quick
        else [
            (sigma, *passed_by_users(sigma, events, PASS_RUNS))
            for sigma in (0.0, 2.0)
            for events in (100.0, 400.0, 2_000.0)
        ]
    )
    naive, ranks = naive_stopped(NAIVE_RATE, power_runs), naive_ranks_stopped(power_runs)
    return Measured(counted, powers, exposed, naive, passes, ranks)


def lines_of(found: Measured) -> list[Line]:
    """Return the lines; the reference of the first is what looking costs a fixed-size test."""
    worst = max(each.upper for each in found.counted if each.cell.is_a_guarantee)
    by_request = max(e.stopped / e.runs for e in found.counted if not e.cell.is_a_guarantee)
    return [
        Line(
            "false_rollback_upper99", 100 * worst, "% of rollouts, worst cell",
            Goal("<=", 100 * ALPHA, "ours"), 100 * found.naive,
            f"z-test at {LOOKS_OF_NAIVE:,} looks",
        ),
        Line(
            "false_rollback_worst_cell",
            100 * max(e.stopped / e.runs for e in found.counted if e.cell.is_a_guarantee),
            "% of rollouts", Goal("<=", 100 * ALPHA, "ours"), 100 * by_request,
            "sticky users by request",
        ),
        Line(
            "exposed_calls_1_to_5", found.exposed.median_exposed, "calls, median",
            Goal("<=", GOAL_EXPOSED, "ours"),
        ),
        Line(
            "caught_1_to_5", 100 * found.exposed.stopped, "% of rollouts", Goal(">=", 99, "ours"),
        ),
    ]  # fmt: skip


def notes(found: Measured, *, is_quick: bool) -> list[str]:
    """Return what a reader of the lines has to know."""
    runs = found.counted[0].runs
    each = (
        f"alpha {ALPHA:.0%}; {runs:,} rollouts in each of {len(found.counted)} cells, stopped by "
        "the judge's own evidence, looked at after every event"
    )
    naive = (
        f"beside it, one-sided tests of {ALPHA:.0%} that are looked at again and again: z at "
        f"{LOOKS_OF_NAIVE:,} looks stops {found.naive:.1%} of equal candidates, Mann-Whitney on "
        f"latencies at {LOOKS_OF_RANKS} looks {found.naive_ranks:.1%}"
    )
    if not is_quick:
        return [each, naive]
    few = (
        f"--quick: {runs:,} runs a cell bound a true 0.7 % by about 1.2 %: the goal of "
        f"{ALPHA:.0%} is for the whole run of {RUNS:,}"
    )
    return [each, naive, few]


def document(found: Measured, top: Sequence[str]) -> str:
    """Return the committed table."""
    parts = [
        "# The judge: false rollbacks and power",
        "",
        f"`{COMMAND}` (these tables: `python -m bench.rollout.judge --document FILE`)",
        "",
        *[f"{each}  " for each in top],
        "",
        "Counts of simulated rollouts, not times: the seeds are fixed, so another machine gives",
        "the same. `tests/unit/workflows/judge/test_simulation.py` holds the simulator to the",
        "functions that judge.",
        "",
        *_false_table(found),
        *_facts(found),
        *_pass_table(found),
        *_power_table(found),
    ]
    return "\n".join(parts) + "\n"


def _false_table(found: Measured) -> list[str]:
    rows = [
        "## Equal versions, or a better candidate: how often the candidate is stopped",
        "",
        f"Alpha is {ALPHA:.0%}. Calls a step: "
        + ", ".join(f"{calls:,} at {rate:.1%}" for rate, calls in CALLS_A_STEP.items())
        + f". Sticky: {USERS} users, equal or lognormal with sigma 2 (the worst tenth makes three",
        "quarters of the errors). `user`: first error of each user in each step. `first`: half of",
        "alpha on that, half on first errors of the whole rollout.",
        "",
        "| errors | share | counted by | users | ratio | stopped | of | upper 99 % |",
        "|---:|---|---|---|---:|---:|---:|---:|",
    ]
    rows += [_false_row(each) for each in found.counted if each.cell.is_a_guarantee]
    worst = max((e for e in found.counted if e.cell.is_a_guarantee), key=lambda e: e.upper)
    return [*rows, "", f"Worst upper bound: {worst.upper:.3%} ({worst.cell.name}).", ""]


def _false_row(each: Counted) -> str:
    cell = each.cell
    users = "-" if cell.counting == "random" else ("unequal" if cell.sigma else "equal")
    return (
        f"| {cell.rate:.1%} | {cell.ramp} | {cell.counting} | {users} | {cell.ratio:g} | "
        f"{each.stopped} | {each.runs:,} | {each.upper:.3%} |"
    )


def _facts(found: Measured) -> list[str]:
    rows = [
        "## What would break it",
        "",
        "Sticky users whose every error is counted, as if each were a draw of its own, on the same",
        "ramp; the judge counts `user` or `first` there. And one-sided tests of 1 %, looked at",
        "again and again.",
        "",
        "| way to count | users | stopped | of | share |",
        "|---|---|---:|---:|---:|",
    ]
    same = ("user", "first", "request")
    for each in found.counted:
        cell = each.cell
        if (cell.rate, cell.ramp, cell.ratio) == (0.01, RAMP, 1.0) and cell.counting in same:
            users = "unequal" if cell.sigma else "equal"
            share = each.stopped / each.runs
            rows.append(
                f"| {cell.counting} | {users} | {each.stopped} | {each.runs:,} | {share:.2%} |"
            )
    rows.append(
        f"| z-test at each of {LOOKS_OF_NAIVE:,} looks | random calls, errors {NAIVE_RATE:.0%}, "
        f"half of them | {round(found.naive * POWER_RUNS)} | {POWER_RUNS:,} | {found.naive:.1%} |"
    )
    rows.append(
        f"| Mann-Whitney at each of {LOOKS_OF_RANKS} looks | random calls, latencies of one "
        f"distribution, half of them | {round(found.naive_ranks * POWER_RUNS)} | {POWER_RUNS:,} | "
        f"{found.naive_ranks:.1%} |"
    )
    return [*rows, ""]


def _pass_table(found: Measured) -> list[str]:
    rows = [
        "## Sticky users: what PASS says",
        "",
        "A candidate that gives every user 1.5 times the errors, against a margin of 0.5, at an",
        f"equal split of 2,000 users, seen 50 times a step; {PASS_RUNS:,} rollouts a row. PASS",
        "rules out a ratio of *first* errors. While few users have met one that is the ratio of",
        "errors; once many have, it is smaller, and PASS says no more than that.",
        "",
        "| users | of them with an error by the end | passed |",
        "|---|---:|---:|",
    ]
    rows += [
        f"| {'unequal' if sigma else 'equal'} | {erred:.0%} | {passed:.1%} |"
        for sigma, passed, erred in found.passes
    ]
    return [*rows, ""]


def _power_table(found: Measured) -> list[str]:
    rows = [
        "## Regressions: how many are stopped, and how many calls of the candidate that takes",
        "",
        f"Ramp {RAMP}, calls drawn at random, {POWER_RUNS:,} rollouts a row.",
        "Columns of shares: stopped by the end of that step.",
        "",
        "| errors | factor | calls a step | 1 % | 5 % | 10 % | 25 % | 50 % | exposed, median |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        _power_row(found.exposed, CALLS_OF_EXPOSED),
    ]
    rows += [_power_row(each, CALLS_A_STEP[each.rate]) for each in found.powers]
    return rows


def _power_row(each: Power, calls: int) -> str:
    shares = " | ".join(f"{share:.1%}" for share in each.by_stage)
    exposed = "-" if math.isnan(each.median_exposed) else f"{each.median_exposed:,.0f}"
    return f"| {each.rate:.1%} | {each.ratio:g} | {calls:,} | {shares} | {exposed} |"


def main() -> None:
    """Print the lines, or write the document; progress goes to standard error."""
    parser = argparse.ArgumentParser(prog="bench rollout, the judge", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs, fewer cells")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--document", type=Path, help="write the whole table to this file")
    parser.add_argument("--rows", type=Path, help="keep the counts of the cells in this file")
    asked = parser.parse_args()
    top = header("bench rollout, the lines of the judge" + (" --quick" if asked.quick else ""))
    found = measure(is_quick=asked.quick, rows=asked.rows)
    top += notes(found, is_quick=asked.quick)
    if asked.document:
        asked.document.write_text(document(found, top))
    print_lines(top, lines_of(found), as_json=asked.json)


if __name__ == "__main__":
    main()
