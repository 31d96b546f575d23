"""The form of every benchmark: lines with a reference each, a header with machine and date."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

CPU_INFO = Path("/proc/cpuinfo")
WIDTH = 140
Direction = Literal[">=", "<="]


@dataclass(frozen=True)
class Goal:
    """What a line should reach: a bound of its ratio, or of its own figure."""

    direction: Direction
    bound: float
    of: Literal["ratio", "ours"] = "ratio"

    def is_met(self, value: float) -> bool:
        """Say whether a figure is within the bound."""
        return value >= self.bound if self.direction == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.direction} {self.bound:g}{'x' if self.of == 'ratio' else ''}"


@dataclass(frozen=True)
class Line:
    """One figure of ours beside its reference; no reference where the goal is a number."""

    line: str
    ours: float
    unit: str
    goal: Goal
    reference: float | None = None
    reference_name: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by the reference; None without one."""
        return self.ours / self.reference if self.reference else None

    @property
    def is_met(self) -> bool:
        """Say whether the goal is reached."""
        value = self.ours if self.goal.of == "ours" else self.ratio
        return value is not None and self.goal.is_met(value)

    def as_json(self) -> str:
        """Return the line as one JSON object."""
        found = asdict(self) | {
            "ours": _short(self.ours),
            "reference": None if self.reference is None else _short(self.reference),
            "ratio": None if self.ratio is None else _short(self.ratio),
            "goal": str(self.goal),
            "met": self.is_met,
        }
        order = ("line", "ours", "unit", "reference", "reference_name", "ratio", "goal", "met")
        return json.dumps({name: found[name] for name in order})


def header(title: str, *notes: str) -> list[str]:
    """Return what every table begins with: what, when, on which machine."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    now = datetime.now(UTC)
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return [
        f"{title}, {now:%Y-%m-%d %H:%M} UTC",
        f"{_cpu()}, {os.cpu_count()} cores, {system}, load before the run {load}",
        *notes,
    ]


def say(text: str) -> None:
    """Tell progress on standard error: standard output belongs to the figures."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_lines(top: Iterable[str], lines: Iterable[Line], *, as_json: bool) -> None:
    """Print the lines: one JSON object a line, or a table under its header."""
    if as_json:
        for text in top:
            say(text)
        for line in lines:
            sys.stdout.write(line.as_json() + "\n")
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for text in top:
        console.print(text, soft_wrap=True)
    console.print(_table(lines))


def _table(lines: Iterable[Line]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("line", "ours", "unit", "reference", "of", "ratio", "goal", "met"):
        is_number = name in ("ours", "reference", "ratio")
        table.add_column(name, justify="right" if is_number else "left")
    for each in lines:
        table.add_row(
            each.line,
            f"{_short(each.ours):,}",
            each.unit,
            "" if each.reference is None else f"{_short(each.reference):,}",
            each.reference_name,
            "" if each.ratio is None else f"{each.ratio:.3g}",
            str(each.goal),
            "yes" if each.is_met else "no",
        )
    return table


def _short(value: float) -> float | int:
    """Return a figure without digits that no run repeats."""
    if abs(value) >= 100 or value == int(value):
        return round(value)
    return float(f"{value:.3g}")


def _cpu() -> str:
    for row in CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else ():
        if row.startswith("model name"):
            return row.partition(":")[2].strip()
    return platform.machine()
