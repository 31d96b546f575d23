"""The form that every benchmark prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.load import generator
from bench.report import Goal, Line, print_lines

FASTER = Line("small", 300.0, "calls/s", Goal(">=", 2), 100.0, "echo")
SLOWER = Line("p50", 250.0, "us", Goal("<=", 130, "ours"), 187.0, "echo")
NONE = Line("mixed_up", 0, "rows", Goal("<=", 0, "ours"), 1_000, "rows")


def test_json_is_one_object_a_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(["header"], [FASTER, SLOWER, NONE], as_json=True)
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "line": "small",
        "ours": 300,
        "unit": "calls/s",
        "reference": 100,
        "reference_name": "echo",
        "ratio": 3,
        "goal": ">= 2x",
        "met": True,
    }
    assert (second["ratio"], second["goal"], second["met"]) == (1.34, "<= 130", False)
    assert third["met"] is True


def test_a_table_has_its_header_and_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(["bench x, on a machine"], [FASTER, SLOWER], as_json=False)
    shown = capsys.readouterr().out
    assert shown.startswith("bench x, on a machine\n")
    rows = {row.split()[0]: row.split()[-1] for row in shown.splitlines()[2:]}
    assert rows == {"small": "yes", "p50": "no"}


def test_a_ratio_without_a_reference_is_never_met() -> None:
    line = Line("alone", 10.0, "calls/s", Goal(">=", 1), 0.0, "a reference that did nothing")
    assert line.ratio is None
    assert not line.is_met


async def test_without_cargo_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(generator.BenchError, match="install Rust"):
        await generator.built(0)
