"""`volary test`: every test of the project."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

REPO = Path(__file__).parents[3]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def test(
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to pytest.")] = None,
) -> None:
    """Run every test; arguments go to pytest, such as `volary test -k rollout -x`."""
    os.chdir(REPO)
    words = [sys.executable, "-m", "pytest", *(arguments or ())]
    os.execv(sys.executable, words)  # noqa: S606 - pytest takes over, exit status included
