"""How commands speak: tables for people on a terminal, one JSON object for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

PIPE_COLUMNS = 200  # what reads a pipe has no window to fit into


def _console(*, is_error: bool) -> Console:
    found = Console(stderr=is_error, highlight=False)
    return (
        found
        if found.is_terminal
        else Console(stderr=is_error, width=PIPE_COLUMNS, highlight=False)
    )


console = _console(is_error=False)
errors = _console(is_error=True)


def print_json(value: Any) -> None:
    """Print one JSON object, nothing else, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()
) -> None:
    """Print rows under their headings; the columns named in `right` are numbers."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    numbers = set(right)
    for column in columns:
        shown.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        shown.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(shown)


def progress(text: str) -> None:
    """Say what is going on, on standard error: standard output belongs to the result."""
    errors.print(text)
