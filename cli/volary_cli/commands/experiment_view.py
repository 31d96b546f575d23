"""How an experiment looks on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from volary.registry.v1.model_pb2 import Evaluation
    from volary_workflows.experiment.messages import ArmLook, ExperimentStatus
    from volary_workflows.rollout.explaining import Explanation

COLOURS = {
    "WINNER": "green",
    "BETTER": "green",
    "INVALID": "red",
    "HARMFUL": "red",
    "WORSE": "red",
    "UNDECIDED": "yellow",
}


def shown(found: ExperimentStatus) -> Group:
    """Return an experiment as tables: where it is, its arms, how it came here."""
    table = _facts()
    look = found.look
    winner = f"  winner {look.winner}" if look.winner else ""
    codes = ", ".join(look.reason_codes)
    rows = (
        ("experiment", f"{found.name} on {found.model}, by {found.metric}"),
        ("among", _among(found)),
        ("id", found.experiment),
        ("state", f"[bold]{found.state}[/]  {found.reason}"),
        ("ends", _time(found.ends_s) if found.ends_s else ""),
        ("verdict", f"{_coloured(look.verdict)}{winner}  {codes}" if look.verdict else ""),
        ("report", look.report),
    )
    for label, text in rows:
        if text:
            table.add_row(label, text)
    history = _facts()
    for change in found.history:
        history.add_row(_time(change.at_s), f"{change.state}  {change.reason}")
    return Group(table, _arms(found), history)


def reported(found: Evaluation, again: Explanation) -> Group:
    """Return a stored report, and whether its inputs give the same verdict today."""
    table = _facts()
    mark = "[green]agrees[/]" if again.agrees else f"[red]differs: {again.recomputed}[/]"
    table.add_row("experiment", found.rollout)
    table.add_row("verdict", f"{_coloured(found.verdict)}  {', '.join(found.reason_codes)}")
    table.add_row("again", f"{mark}  judged by {again.judge}")
    reasons = [Text(reason) for reason in found.reasons]  # `[low, high]` is no markup
    return Group(table, *reasons)


def _among(found: ExperimentStatus) -> str:
    segment = found.segment
    return f"{segment.header}: {', '.join(segment.values)}" if segment.header else ""


def _arms(found: ExperimentStatus) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("arm", "version", "share"):
        table.add_column(heading)
    for heading in ("units", "outcomes", "mean", "difference", "low", "high"):
        table.add_column(heading, justify="right")
    table.add_column("")
    looks = {look.name: look for look in found.look.arms}
    for arm in found.arms:
        look = looks.get(arm.name)
        is_control = arm.name == found.control
        numbers = _numbers(look, is_control=is_control) if look else ("",) * 6
        said = "control" if is_control else _coloured(look.verdict if look else "")
        table.add_row(arm.name, f"v{arm.version}", f"{arm.weight / 100:g} %", *numbers, said)
    return table


def _numbers(look: ArmLook, *, is_control: bool) -> tuple[str, ...]:
    seen = (f"{look.units:,}", f"{look.outcomes:,}", f"{look.mean:.4g}")
    if is_control:
        return (*seen, "", "", "")
    return (*seen, f"{look.difference:+.4g}", f"{look.low:+.4g}", f"{look.high:+.4g}")


def _facts() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    return table


def _coloured(verdict: str) -> str:
    colour = COLOURS.get(verdict)
    return f"[{colour}]{verdict}[/]" if colour else verdict


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
