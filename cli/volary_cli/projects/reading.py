"""A folder of declared documents: strict, owned, no name twice; errors with file and line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints
from volary_kit.documents import (
    Document,
    DocumentError,
    Problem,
    Strict,
    canonical,
    read_documents,
)
from volary_workflows.experiment.specification import read_experiment
from volary_workflows.rollout.specification import SpecificationError, read_specification

Kind = Literal[
    "Source", "FeatureView", "FeatureSet", "Model", "Training", "Monitor", "Experiment", "Demo"
]
# what a document may refer to comes before it
ORDER: tuple[Kind, ...] = ("Source", "FeatureView", "FeatureSet", "Model", "Training", "Monitor")
Id = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Person = Annotated[str, StringConstraints(min_length=1, max_length=128, strip_whitespace=True)]


class Envelope(Strict):
    """What every declared document is: something named, owned by somebody who can be called."""

    kind: Kind
    name: Id
    owner: Person
    on_call: Person
    spec: dict[str, Any]


@dataclass(frozen=True)
class Declaration:
    """One declared document and where it stands."""

    kind: Kind
    name: str
    owner: str
    on_call: str
    document: Document

    @property
    def spec(self) -> dict[str, Any]:
        """The part that only the owning service reads."""
        spec: dict[str, Any] = self.document.data["spec"]
        return spec

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def is_same_as(self, data: Any) -> bool:
        """Say whether a stored document is this one; a Struct has turned its ints to floats."""
        return canonical(_as_stored(self.document.data)) == canonical(_as_stored(data))


def read_project(folder: Path) -> list[Declaration]:
    """Return the declarations of a folder in the order in which they can be applied.

    Raises DocumentError with every problem of the first file that has any.
    """
    if not folder.is_dir():
        raise DocumentError(str(folder), [Problem(None, "", "is not a folder")])
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml"))
    found = [_declaration(document) for file in files for document in read_documents(file)]
    if not found:
        raise DocumentError(str(folder), [Problem(None, "", "holds no YAML document")])
    _require_unique(found)
    for declaration in found:
        _check_rollout(declaration)
        _check_experiment(declaration)
    return sorted(found, key=lambda each: (_rank(each.kind), each.name))


def read_file(file: Path) -> list[Declaration]:
    """Return the declarations of one file; raises DocumentError with every problem."""
    return [_declaration(document) for document in read_documents(file)]


def find(declarations: Iterable[Declaration], kind: Kind, name: str | None = None) -> Declaration:
    """Return the one declaration of a kind, or of a kind and name; raise DocumentError."""
    found = [d for d in declarations if d.kind == kind and name in (None, d.name)]
    if len(found) != 1:
        what = kind if name is None else f"{kind} {name}"
        raise DocumentError("project", [Problem(None, "", f"holds {len(found)} of {what}, not 1")])
    return found[0]


def _declaration(document: Document) -> Declaration:
    envelope = document.check(Envelope)
    return Declaration(envelope.kind, envelope.name, envelope.owner, envelope.on_call, document)


def _rank(kind: Kind) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def _require_unique(declarations: Iterable[Declaration]) -> None:
    seen: dict[tuple[str, str], Declaration] = {}
    for declaration in declarations:
        first = seen.setdefault((declaration.kind, declaration.name), declaration)
        if first is not declaration:
            text = f"{declaration} is declared in {first.document.source} too"
            line = declaration.document.lines.get(("name",))
            raise DocumentError(declaration.document.source, [Problem(line, "name", text)])


def _check_rollout(declaration: Declaration) -> None:
    """Check a training's rollout now: the service that stores it does not run it."""
    rollout = declaration.spec.get("rollout") if declaration.kind == "Training" else None
    if rollout is None:
        return
    model = str(declaration.spec.get("model", ""))
    try:
        read_specification(rollout, project="default", model=model, candidate=1)
    except SpecificationError as error:
        raise _located(declaration, error, "spec", "rollout") from None


def _check_experiment(declaration: Declaration) -> None:
    """Check an experiment now, though only `volary experiment start` runs it."""
    if declaration.kind != "Experiment":
        return
    try:
        read_experiment(declaration.spec, name=declaration.name, project="default")
    except SpecificationError as error:
        raise _located(declaration, error, "spec") from None


def _located(declaration: Declaration, error: SpecificationError, *at: str) -> DocumentError:
    line = declaration.document.lines.get(at)
    problems = [
        Problem(line, ".".join([*at, field]), text) for field, text in error.problems.items()
    ]
    return DocumentError(declaration.document.source, problems)


def _as_stored(value: Any) -> Any:
    """Return data as it comes back from a Struct."""
    match value:
        case bool() | None | str():
            return value
        case int() | float():
            return float(value)
        case dict():
            return {str(key): _as_stored(child) for key, child in value.items()}
        case _:
            return [_as_stored(child) for child in value]
