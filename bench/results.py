"""Lines that are kept in a file, so that a long bench goes on where the run before it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench.report import Goal, Line


class Results:
    """What was measured, in this run and in those before it that wrote to the same file.

    A line of `counts` counts events over its reference (calls, rows, swaps): it is measured in
    parts, which add up, until the reference has come to the number there.
    """

    def __init__(self, path: Path | None, counts: Mapping[str, float]) -> None:
        self._path = path
        self._counts = counts
        self._found: dict[str, Line] = {}
        if path is not None and path.is_file():
            for text in path.read_text().splitlines():
                self._keep(line_of(text))

    @property
    def lines(self) -> list[Line]:
        """Every line, in the order in which they were first measured."""
        return list(self._found.values())

    def is_done(self, name: str) -> bool:
        """Say whether a line needs no more measuring."""
        found = self._found.get(name)
        return found is not None and (found.reference or 0) >= self._counts.get(name, 0)

    def add(self, *lines: Line) -> None:
        """Keep lines, or parts of lines, at once in the file, too."""
        for line in lines:
            self._keep(line)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(line.as_json() + "\n")

    def _keep(self, line: Line) -> None:
        before = self._found.get(line.line)
        if before is not None and line.line in self._counts:
            over = (before.reference or 0) + (line.reference or 0)
            line = replace(line, ours=before.ours + line.ours, reference=over)
        self._found[line.line] = line


def line_of(text: str) -> Line:
    """Return the line that was written as one JSON object."""
    found = json.loads(text)
    direction, _, bound = found["goal"].partition(" ")
    of = "ratio" if bound.endswith("x") else "ours"
    return Line(
        found["line"],
        found["ours"],
        found["unit"],
        Goal(direction, float(bound.removesuffix("x")), of),
        found["reference"],
        found["reference_name"],
    )
