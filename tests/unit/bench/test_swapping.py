from __future__ import annotations

from pathlib import Path

import pytest

from bench.inference.swapping import Tenure, count_wrong


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Calls around the moment when version 3 took over: between 1,000 and 1,200."""
    path = tmp_path / "answers"
    rows = [(900, 950, 2), (990, 1_010, 3), (1_100, 1_150, 2), (1_200, 1_250, 2), (1_300, 1_310, 3)]
    path.write_text("".join(f"{asked} {answered} {version}\n" for asked, answered, version in rows))
    return path


def test_either_is_right_while_the_service_changes(answers: Path) -> None:
    assert count_wrong(answers, {2: Tenure(0, 1_200), 3: Tenure(1_000)}) == (5, 0)


def test_each_call_outside_of_its_versions_time_is_counted(answers: Path) -> None:
    too_early = {2: Tenure(0, 1_200), 3: Tenure(1_011)}
    assert count_wrong(answers, too_early) == (5, 1)
    too_late = {2: Tenure(0, 1_099), 3: Tenure(1_000)}
    assert count_wrong(answers, too_late) == (5, 2)
    assert count_wrong(answers, {2: Tenure(0, 1_200)}) == (5, 2), "nobody wanted version 3"


def test_nothing_answered_is_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "none"
    path.write_text("")
    assert count_wrong(path, {}) == (0, 0)
