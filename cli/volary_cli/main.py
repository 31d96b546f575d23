"""The `volary` command."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from volary_cli.commands import (
    bench,
    demo,
    development,
    experiment,
    identities,
    mesh,
    models,
    projects,
    replicas,
    retrain,
    rollout,
    traces,
    variants,
)
from volary_cli.commands.exits import CommandError
from volary_cli.commands.output import errors

EPILOG = (
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 no mesh runs, 4 not all is ready, "
    "5 the mesh refused."
)

TEMPORAL = "temporalio.bridge.temporal_sdk_bridge"

app = typer.Typer(
    name="volary",
    help="A mesh of gRPC services that carries a model from data to production and back.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (mesh.up, mesh.down, mesh.status, mesh.logs):
    app.command(rich_help_panel="The mesh")(command)
app.command(rich_help_panel="The mesh")(traces.trace)
app.command(rich_help_panel="The mesh")(demo.demo)
app.command(rich_help_panel="The mesh")(identities.keys)
for command in (
    *(projects.apply, models.production, replicas.replicas, models.predict, models.alerts),
    variants.variant,
):
    app.command(rich_help_panel="Models")(command)
app.add_typer(rollout.app, name="rollout", rich_help_panel="Models")
app.add_typer(experiment.app, name="experiment", rich_help_panel="Models")
app.add_typer(retrain.app, name="retrain", rich_help_panel="Models")
app.command(rich_help_panel="Development", context_settings=development.PASS_ON)(development.test)
app.add_typer(bench.app, name="bench", rich_help_panel="Development")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"volary {metadata.version('volary-cli')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Carry a model from data to production and back."""


def main() -> None:
    """Run one command; tell an expected error in one line and exit with its status."""
    try:
        _run()
    except SystemExit as end:
        if TEMPORAL in sys.modules:
            _leave(end)
        raise


def _leave(end: SystemExit) -> NoReturn:
    """Exit at once: a thread of Temporal's client that wakes while Python ends aborts it."""
    if isinstance(end.code, str):
        sys.stderr.write(end.code + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def _run() -> None:
    # every child is a fork that execs at once: gRPC has nothing to repair in it
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        app(prog_name="volary")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            raise
        errors.print(f"[red]error:[/] {explained.args[0]}", soft_wrap=True)
        sys.exit(explained.status)


def _explained(error: Exception) -> CommandError | None:
    """Return what a person is told of an error; None when it is a defect of ours."""
    if isinstance(error, CommandError):
        return error
    from volary_cli.commands.failures import explained

    return explained(error)
