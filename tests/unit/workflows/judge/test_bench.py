"""The benchmark of the judge: its bound, its cells, its lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.rollout.judge import (
    Counted,
    Measured,
    Rows,
    document,
    lines_of,
    notes,
    upper_bound,
)
from bench.rollout.judge_cells import CALLS_A_STEP, RAMPS, Cell, Power, cells, naive_ranks_stopped

COUNTED = [
    Counted(Cell(0.01, "10 %"), 60, 20_000),
    Counted(Cell(0.01, "10 %", "request"), 900, 20_000),
]
EXPOSED = Power(0.01, 5.0, 1.0, 139.0, (0.2, 0.9, 1.0, 1.0, 1.0))
MEASURED = Measured(
    COUNTED, [Power(0.05, 2.0, 0.9, float("nan"), (0.0,) * 5)], EXPOSED, 0.15, [(2.0, 0.4, 0.5)]
)


def test_the_bound_is_the_exact_one():
    # without a hit the bound solves (1 - p)^n = 1 %; with 1 in 2 it solves p^2 = 99 %
    assert upper_bound(0, 1_000) == pytest.approx(1 - 0.01 ** (1 / 1_000))
    assert upper_bound(1, 2) == pytest.approx(0.99**0.5)
    assert upper_bound(3, 3) == 1.0


def test_every_cell_has_a_seed_of_its_own_and_repeats_itself():
    every = list(cells(is_quick=False))
    assert len({cell.name for cell in every}) == len(every) == 84
    assert {cell.name for cell in cells(is_quick=True)} <= {cell.name for cell in every}
    cell = Cell(0.05, "10 %", "user", 2.0)
    assert cell.stopped(300) == cell.stopped(300)


def test_every_share_is_drawn_sticky_and_at_random_with_equal_and_unequal_users():
    equal = {(c.rate, c.ramp, c.counting, c.sigma) for c in cells(is_quick=False) if c.ratio == 1}
    for rate in CALLS_A_STEP:
        for ramp in RAMPS:
            wanted = {(rate, ramp, "random", 0.0)}
            wanted |= {(rate, ramp, how, sigma) for how in ("user", "first") for sigma in (0.0, 2)}
            assert wanted <= equal


def test_counts_that_are_known_are_not_drawn_again(tmp_path: Path):
    path, cell = tmp_path / "rows", Cell(0.2, "1 %")
    drawn = Rows(path).counted(cell, 50)
    assert Rows(path).counted(cell, 50) == drawn
    assert len(path.read_text().splitlines()) == 1
    path.write_text(json.dumps({"cell": cell.name, "runs": 50, "stopped": 49}) + "\n")
    assert Rows(path).counted(cell, 50).stopped == 49
    assert Rows(path).counted(cell, 40).stopped <= 40  # so many runs are not known


def test_lines_judge_what_the_judge_does_and_not_the_fact_beside_it():
    lines = {line.line: json.loads(line.as_json()) for line in lines_of(MEASURED)}
    assert lines["false_rollback_upper99"]["ours"] == pytest.approx(0.403, abs=0.002)
    assert lines["false_rollback_upper99"]["met"] is True
    assert lines["false_rollback_worst_cell"]["reference"] == pytest.approx(4.5)
    assert (lines["exposed_calls_1_to_5"]["ours"], lines["exposed_calls_1_to_5"]["met"]) == (
        139,
        True,
    )


def test_the_document_holds_both_countings_and_a_quick_run_says_so():
    text = document(MEASURED, ["a machine, a day"])
    assert "| 1.0% | 10 % | random | - | 1 | 60 | 20,000 | 0.403% |" in text
    assert "| 5.0% | 2 | 4,000 | 0.0% | 0.0% | 0.0% | 0.0% | 0.0% | - |" in text
    assert "| unequal | 50% | 40.0% |" in text
    assert "| Mann-Whitney at each of 100 looks |" in text
    assert "the goal of 1%" in notes(MEASURED, is_quick=True)[-1]
    assert "Mann-Whitney" in notes(MEASURED, is_quick=False)[-1]


def test_looking_again_and_again_costs_a_rank_test_its_level():
    once = naive_ranks_stopped(500)
    assert 0.04 < once < 0.25  # each look alone stops 1 %
    assert naive_ranks_stopped(500) == once
