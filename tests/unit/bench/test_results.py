"""Lines kept in a file, so that a long bench may be run in pieces."""

from __future__ import annotations

from pathlib import Path

from bench.report import Goal, Line
from bench.results import Results, line_of

COUNTS = {"mixed_up": 1_000}
SPEED = Line("speed", 300.0, "calls/s", Goal(">=", 2), 100.0, "echo")
NEVER = Goal("<=", 0, "ours")


def part(wrong: int, rows: int) -> Line:
    return Line("mixed_up", wrong, "rows", NEVER, rows, "of so many rows")


def test_a_later_run_goes_on_where_the_one_before_ended(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    first = Results(path, COUNTS)
    first.add(SPEED)
    first.add(part(1, 600))
    assert first.is_done("speed")
    assert not first.is_done("mixed_up")
    second = Results(path, COUNTS)
    assert second.is_done("speed")
    assert not second.is_done("mixed_up")
    second.add(part(2, 400))
    assert second.is_done("mixed_up")
    for results in (second, Results(path, COUNTS)):
        speed, mixed_up = results.lines
        assert (speed, mixed_up.ours, mixed_up.reference) == (SPEED, 3, 1_000)
        assert not mixed_up.is_met


def test_a_figure_measured_again_replaces_the_older_one() -> None:
    results = Results(None, COUNTS)
    slower = Line("speed", 200.0, "calls/s", Goal(">=", 2), 100.0, "echo")
    results.add(SPEED, slower)
    assert results.lines == [slower]
    assert not results.is_done("another")


def test_a_line_is_read_as_it_was_written() -> None:
    for line in (SPEED, part(0, 12), Line("time", 3.5, "ms", Goal("<=", 100, "ours"))):
        assert line_of(line.as_json()) == line
