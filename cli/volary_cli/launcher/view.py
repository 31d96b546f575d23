"""The live table of a mesh that starts; plain lines where there is no terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

COLUMNS = ("component", "kind", "health", "address", "pid", "version", "restarts", "ready in")
NUMBERS = {"pid", "restarts", "ready in"}
COLOURS = {"ready": "green", "starting": "yellow", "degraded": "yellow", "down": "red"}
MARKS = {"ready": "●", "starting": "◌", "degraded": "◐", "down": "○"}


def table(state: dict[str, Any]) -> Table:
    """Return the components of a state, one a row."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "component",
        "kind",
        "health",
        "address",
        "pid",
        "version",
        "restarts",
        "ready in",
    ):
        shown.add_column(
            name, justify="right" if name in {"pid", "restarts", "ready in"} else "left"
        )
    for row in state["status"]["components"]:
        shown.add_row(*_cells(row, state.get("seconds", {}).get(row["name"])))
    return shown


def _cells(row: dict[str, Any], seconds: float | None) -> list[str]:
    health = row["health"]
    port = row["ports"].get("data")
    return [
        row["name"],
        row["kind"],
        f"[{COLOURS[health]}]{MARKS[health]} {health}[/]",
        f"127.0.0.1:{port}" if port else "",
        str(row["pid"] or ""),
        f"{row['version']} {row.get('engine', '')}".strip(),
        str(row["restarts"] or ""),
        "" if seconds is None else f"{seconds:.1f} s",
    ]


class MeshView:
    """Shows each state: a live table on a terminal, one line per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._known: dict[str, str] = {}
        self._phase = ""
        self._live: Live | None = None

    def show(self, state: dict[str, Any]) -> None:
        """Show a state that changed."""
        if self._console.is_terminal:
            self._show_live(state)
        else:
            self._show_lines(state)

    def close(self) -> None:
        """Leave the last table standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_live(self, state: dict[str, Any]) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=8)
            self._live.start()
        self._live.update(table(state))

    def _show_lines(self, state: dict[str, Any]) -> None:
        if state["phase"] != self._phase:
            self._phase = state["phase"]
            self._console.print(f"mesh {self._phase}")
        for row in state["status"]["components"]:
            if self._known.get(row["name"], "down") != row["health"]:
                seconds = state["seconds"].get(row["name"])
                after = f" after {seconds:.1f} s" if seconds and row["health"] == "ready" else ""
                self._console.print(f"  {row['name']:<14}{row['health']}{after}")
            self._known[row["name"]] = row["health"]
