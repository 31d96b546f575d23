"""What an exit status means, and which error ends a command with which."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2  # typer's own
    NO_MESH = 3
    NOT_READY = 4
    REFUSED = 5  # the mesh said no: a gate, a policy, a state


class CommandError(Exception):
    """A command cannot do what it was asked; the text says what to do next."""

    def __init__(self, text: str, status: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.status = status
