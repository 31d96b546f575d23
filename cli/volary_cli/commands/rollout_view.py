"""How a rollout looks on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from volary_workflows.rollout.explaining import Explanation
    from volary_workflows.rollout.messages import Approved, RolloutStatus

BAR = 30
COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def shown(found: RolloutStatus) -> Table:
    """Return a rollout as a table: where it is, what the judge says, how it came here."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    paused = f"  [yellow]paused: {found.paused}[/]" if found.paused else ""
    look = found.look
    verdict = _coloured(look.verdict) if look.verdict else ""
    rows = (
        ("rollout", f"{found.model} {found.baseline or 'nothing'} -> {found.candidate}"),
        ("id", found.rollout),
        ("state", f"[bold]{found.state}[/]{paused}  {found.reason}"),
        ("traffic", f"{_bar(found.weight)}  step {found.step}, generation {found.generation}"),
        ("approved", _said(found.approvals) or found.approved_by),
        ("rejected", _said([found.rejection] if found.rejection else [])),
        ("judge", f"{verdict} {', '.join(look.reason_codes)}  {look.calls} calls in this step"),
        ("because", "\n".join(look.reasons)),
        ("dry run", "\n".join(look.dry_run)),
        ("shadow", "\n".join(found.shadow_diff.summary) if found.shadow_diff else ""),
    )
    for label, text in rows:
        if text:
            table.add_row(label, text)
    for each in found.history:
        table.add_row(_time(each.at_s), f"{each.state}  {each.reason}")
    return table


def explained(found: Iterable[Explanation]) -> Table:
    """Return explanations as a table: then, now, and whether the two agree."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("when", "step", "stored", "again", "", "because"):
        table.add_column(heading, overflow="fold")
    for each in found:
        mark = "[green]agrees[/]" if each.agrees else "[red]differs[/]"
        if not each.is_same_judge:
            mark += f" (judged by {each.judge})"
        dry_run = [f"dry run {text}" for text in each.dry_run]
        table.add_row(
            _time(each.at_s),
            each.step or each.kind,
            _coloured(each.verdict),
            _coloured(each.recomputed),
            mark,
            "\n".join([*each.reasons, *each.begun_again, *dry_run]),
        )
    return table


def _bar(weight: int) -> str:
    filled = round(weight / 10_000 * BAR)
    return f"[cyan]{'#' * filled}[/][dim]{'.' * (BAR - filled)}[/] {weight / 100:g} %"


def _coloured(verdict: str) -> str:
    colour = COLOURS.get(verdict)
    return f"[{colour}]{verdict}[/]" if colour else verdict


def _said(approvals: Iterable[Approved]) -> str:
    return "\n".join(
        f"{each.principal}{f': {each.comment}' if each.comment else ''}" for each in approvals
    )


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S")
