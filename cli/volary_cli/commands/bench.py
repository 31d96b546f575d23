"""`volary bench`: what the project measures of itself, from a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from volary_cli.commands.exits import CommandError

REPO = Path(__file__).parents[3]

app = typer.Typer(help="Measure the project beside references in the same run.")


@app.callback()
def bench() -> None:
    """Measure the project beside references in the same run."""


@app.command()
def inference(
    quick: Annotated[bool, typer.Option("--quick", help="A minute, once all is built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Triton, MLServer and KServe beside ours.")
    ] = False,
    models: Annotated[
        int | None, typer.Option("--models", min=20, help="So many models on one replica instead.")
    ] = None,
    line: Annotated[
        list[str] | None, typer.Option("--line", help="This line alone; may be repeated.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Keep lines in this file; go on where it ends."),
    ] = None,
) -> None:
    """Put load on the inference service, beside a grpc.aio echo."""
    options = [*(["--quick"] if quick else []), *(["--json"] if as_json else [])]
    options += [*(["--peers"] if peers else []), *(["--models", str(models)] if models else [])]
    options += [word for name in line or () for word in ("--line", name)]
    options += [] if results is None else ["--results", str(results.resolve())]
    _run("bench.inference", *options)


@app.command()
def rollout(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rollouts, shorter runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Simulate rollouts that the judge stops, and change traffic under load."""
    _run("bench.rollout", *(["--quick"] if quick else []), *(["--json"] if as_json else []))


def _run(module: str, *options: str) -> None:
    if not (REPO / "bench" / "report.py").is_file():
        raise CommandError("benchmarks run from a checkout of the project, which this is not")
    os.chdir(REPO)
    words = [sys.executable, "-m", module, *options]
    os.execv(sys.executable, words)  # noqa: S606 - the bench takes over, exit status included
