"""`volary apply DIR`: make the mesh what a folder declares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volary_cli.commands.mesh import DataDir
from volary_cli.commands.output import AsJson, console, print_json, print_table, progress
from volary_cli.commands.session import Session

if TYPE_CHECKING:
    from volary_client import AsyncClient

    from volary_cli.projects import Change

COLUMNS = ("action", "kind", "name", "version", "owner")


def apply(
    folder: Annotated[Path, typer.Argument(help="Folder of YAML documents.", metavar="DIR")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, change nothing.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Apply a declared project: sources, features, models, trainings, monitors.

    Each document has kind, name, owner, on_call and spec. What differs is created or updated;
    applied again, nothing changes. Example: `volary apply examples/flights --dry-run`.
    """
    from volary_cli.projects import apply_project, plan_project, read_project

    declarations = read_project(folder)

    async def applied(client: AsyncClient) -> list[Change]:
        if dry_run:
            return await plan_project(client, declarations)
        return await apply_project(client, declarations, _tell)

    changes = Session(data_dir).ask(applied)
    rows = [change.as_dict() for change in changes]
    if as_json:
        print_json({"project": str(folder), "dry_run": dry_run, "changes": rows})
        return
    print_table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows], right=("version",))
    count = sum(change.is_needed for change in changes)
    console.print(f"{count} {'to change' if dry_run else 'changed'} of {len(changes)}")


def _tell(change: Change) -> None:
    if change.is_needed:
        progress(f"{change.action.value}d {change.declaration}")
