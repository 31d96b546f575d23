"""Strict YAML: what is refused, and the line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from volary_kit.documents import (
    Declared,
    DocumentError,
    Strict,
    check_data,
    parse_documents,
    read_documents,
)


class Step(Strict):
    weight: int
    label: str = ""


class Spec(Strict):
    steps: list[Step]
    ratio: float = 1.0


class Plan(Declared):
    spec: Spec


GOOD = """\
kind: Plan
name: slow
owner: team-a
on_call: team-a
spec:
  steps:
    - weight: 10
    - weight: 50
      label: half
"""


def problems(text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(DocumentError) as caught:
        for document in parse_documents(text, "plan.yaml"):
            document.check(Plan)
    return [(problem.line, problem.path) for problem in caught.value.problems]


def test_good_document_is_read():
    (document,) = parse_documents(GOOD, "plan.yaml")
    plan = document.check(Plan)
    assert [(step.weight, step.label) for step in plan.spec.steps] == [(10, ""), (50, "half")]


def test_unknown_missing_and_wrong_keys_are_all_named_with_their_lines():
    text = GOOD.replace("weight: 50", "weight: much").replace("label:", "lable:")
    text = text.replace("owner: team-a\n", "")
    assert problems(text) == [
        (1, "owner"),
        (7, "spec.steps[1].weight"),
        (8, "spec.steps[1].lable"),
    ]


def test_duplicate_key_is_refused():
    assert problems(GOOD + "name: again\n") == [(10, "name")]


def test_alias_is_refused():
    text = GOOD.replace("- weight: 10", "- &a\n      weight: 10").replace(
        "- weight: 50\n      label: half", "- *a"
    )
    assert problems(text) == [(7, ""), (9, "")]


def test_syntax_error_has_its_line():
    assert problems("kind: Plan\nname: [\n") == [(3, "")]


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "!!python/object:os.system {}\n"])
def test_what_is_no_plain_mapping_is_refused(text: str):
    with pytest.raises(DocumentError):
        parse_documents(text, "plan.yaml")


def test_scalars_mean_what_they_look_like():
    text = "a: no\nb: 12:30\nc: 2013-01-01\nd: true\ne: 1e3\nf: '5'\ng: 0o17\nh: ~\ni: .5\nj: -3\n"
    (document,) = parse_documents(text, "x")
    assert document.data == {
        "a": "no",
        "b": "12:30",
        "c": "2013-01-01",
        "d": True,
        "e": 1000.0,
        "f": "5",
        "g": 15,
        "h": None,
        "i": 0.5,
        "j": -3,
    }


def test_several_documents_of_a_file(tmp_path: Path):
    path = tmp_path / "all.yaml"
    path.write_text(GOOD + "---\n" + GOOD.replace("slow", "fast"))
    assert [document.check(Plan).name for document in read_documents(path)] == ["slow", "fast"]


def test_data_of_a_struct_has_whole_doubles_for_integers():
    (document,) = parse_documents(GOOD, "plan.yaml")
    data = document.data | {"spec": {"steps": [{"weight": 5.0}]}}
    assert check_data(Plan, data).spec.steps[0].weight == 5
    data["spec"] = {"steps": [{"weight": 5.5}]}
    with pytest.raises(DocumentError) as caught:
        check_data(Plan, data)
    assert caught.value.violations.keys() == {"spec.steps[0].weight"}


def test_deep_nesting_and_large_files_are_refused(tmp_path: Path):
    with pytest.raises(DocumentError):
        parse_documents("a: " + "[" * 5_000 + "]" * 5_000, "x")
    path = tmp_path / "large.yaml"
    path.write_text("#" * (1 << 20) + "\na: 1\n")
    with pytest.raises(DocumentError):
        read_documents(path)
