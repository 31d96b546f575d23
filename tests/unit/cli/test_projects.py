"""Declared projects: strict reading, an honest plan, an idempotent apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from volary_cli.projects import Action, apply_project, applying, find, plan_project, read_project
from volary_cli.projects.owners import OWNERS, Owner, Stored, struct_of
from volary_cli.projects.reading import Declaration
from volary_client import AsyncClient
from volary_kit.documents import DocumentError
from volary_kit.errors import InvalidArgument, NotFound

DOCUMENT = """\
kind: {kind}
name: {name}
owner: birds
on_call: birds-pager
spec: {spec}
"""


def write(folder: Path, kind: str, name: str, spec: str = "{a: 1}") -> Path:
    file = folder / f"{kind}-{name}.yaml".lower()
    file.write_text(DOCUMENT.format(kind=kind, name=name, spec=spec))
    return file


def test_the_flights_example_is_read_in_the_order_in_which_it_can_be_applied() -> None:
    declarations = read_project(Path(__file__).parents[3] / "examples" / "flights")
    kinds = [each.kind for each in declarations]
    assert kinds.index("FeatureView") > kinds.index("Source")
    assert kinds.index("FeatureSet") > kinds.index("FeatureView")
    assert kinds.index("Training") > kinds.index("Model") > kinds.index("FeatureSet")
    assert find(declarations, "Training").name == "flights-delay"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: Model\nname: m\non_call: x\nspec: {}\n", "owner"),
        ("kind: Model\nname: m\nowner: ' '\non_call: x\nspec: {}\n", "line 3: owner"),
        ("kind: Model\nname: m\nowner: o\nspec: {}\n", "on_call"),
        ("kind: Modle\nname: m\nowner: o\non_call: x\nspec: {}\n", "line 1: kind"),
        ("kind: Model\nname: My Model\nowner: o\non_call: x\nspec: {}\n", "line 2: name"),
        ("kind: Model\nname: m\nowner: o\non_call: x\nspec: {}\nextra: 1\n", "line 6: extra"),
        ("kind: Model\nname: m\nowner: o\non_call: x\nspec: []\n", "line 5: spec"),
        ("kind: [\n", "line"),
    ],
)
def test_a_broken_document_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(DocumentError) as failure:
        read_project(tmp_path)
    assert "broken.yaml" in str(failure.value)
    assert told in str(failure.value)


def test_a_name_that_is_taken_is_told_with_both_places(tmp_path: Path) -> None:
    write(tmp_path, "Model", "m")
    (tmp_path / "other.yaml").write_text(DOCUMENT.format(kind="Model", name="m", spec="{}"))
    with pytest.raises(DocumentError, match=r"other\.yaml: line 2.*model-m\.yaml"):
        read_project(tmp_path)


def test_a_rollout_that_cannot_be_is_told_before_anything_is_applied(tmp_path: Path) -> None:
    write(tmp_path, "Training", "t", "{model: m, rollout: {steps: [{weight: 120%}]}}")
    with pytest.raises(DocumentError, match=r"spec\.rollout\.steps\[0\]\.weight"):
        read_project(tmp_path)


def test_no_folder_and_no_document_are_told(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no YAML"):
        read_project(tmp_path)
    with pytest.raises(DocumentError, match="not a folder"):
        read_project(tmp_path / "nothing")


def test_a_stored_document_is_the_same_though_its_numbers_became_floats(tmp_path: Path) -> None:
    write(tmp_path, "Source", "s", "{a: 1, b: [true, null, x], c: {d: 2.5}}")
    (declared,) = read_project(tmp_path)
    stored = struct_of(declared.document.data)
    from google.protobuf.json_format import MessageToDict

    assert declared.is_same_as(MessageToDict(stored))
    stored["spec"]["a"] = 2  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert not declared.is_same_as(MessageToDict(stored))


class Shelf:
    """A service that keeps documents of one kind, and refuses what refers to nothing."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.writes: list[str] = []

    def owner(self) -> Owner:
        async def get(_: AsyncClient, declared: Declaration) -> Stored:
            if declared.name not in self.kept:
                raise NotFound("NOTHING", "nothing")
            return Stored(1, declared.is_same_as(self.kept[declared.name]))

        async def check(_: AsyncClient, declared: Declaration) -> None:
            needs = declared.spec.get("needs")
            if needs is not None and needs not in self.kept:
                raise InvalidArgument("SOURCE_UNKNOWN", f"{needs} is not declared")
            if declared.spec.get("bad"):
                raise InvalidArgument("DOCUMENT_INVALID", "is bad", field="spec.bad")

        async def apply(client: AsyncClient, declared: Declaration) -> int:
            await check(client, declared)
            self.kept[declared.name] = declared.document.data
            self.writes.append(declared.name)
            return 1

        return Owner(get, check, apply)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    shelf = Shelf()
    monkeypatch.setattr(applying, "OWNERS", dict.fromkeys(OWNERS, shelf.owner()))
    return shelf


CLIENT: Any = None  # the shelf needs none


async def test_what_refers_to_a_later_name_is_applied_after_it(
    tmp_path: Path, shelf: Shelf
) -> None:
    write(tmp_path, "Source", "a", "{needs: z}")
    write(tmp_path, "Source", "z")
    declarations = read_project(tmp_path)
    assert [c.action for c in await plan_project(CLIENT, declarations)] == [Action.CREATE] * 2
    assert shelf.writes == []
    told: list[str] = []
    await apply_project(CLIENT, declarations, lambda change: told.append(change.declaration.name))
    assert shelf.writes == told == ["z", "a"]


async def test_a_second_apply_changes_nothing_and_an_edit_changes_one(
    tmp_path: Path, shelf: Shelf
) -> None:
    write(tmp_path, "Source", "a")
    write(tmp_path, "Model", "m")
    await apply_project(CLIENT, read_project(tmp_path))
    again = await apply_project(CLIENT, read_project(tmp_path))
    assert {c.action for c in again} == {Action.UNCHANGED}
    write(tmp_path, "Model", "m", "{a: 2}")
    edited = await apply_project(CLIENT, read_project(tmp_path))
    assert {c.declaration.name: c.action for c in edited} == {
        "a": Action.UNCHANGED,
        "m": Action.UPDATE,
    }
    assert shelf.writes == ["a", "m", "m"]


async def test_a_reference_to_nothing_is_refused_with_its_file(
    tmp_path: Path, shelf: Shelf
) -> None:
    write(tmp_path, "Source", "a", "{needs: nowhere}")
    write(tmp_path, "Source", "b")
    with pytest.raises(InvalidArgument, match=r"source-a\.yaml: Source a: nowhere"):
        await apply_project(CLIENT, read_project(tmp_path))


async def test_a_document_that_its_service_refuses_stops_the_plan_before_any_write(
    tmp_path: Path, shelf: Shelf
) -> None:
    write(tmp_path, "Source", "good")
    write(tmp_path, "Training", "t", "{bad: true}")
    with pytest.raises(InvalidArgument, match=r"training-t\.yaml.*spec\.bad"):
        await apply_project(CLIENT, read_project(tmp_path))
    assert shelf.writes == []
