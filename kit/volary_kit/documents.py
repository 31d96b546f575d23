"""Declared projects: strict YAML checked against pydantic models, errors with line numbers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from volary_kit.errors import InvalidArgument

Location = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
MAX_BYTES = 1 << 20
MAX_SHOWN = 20
MAX_DEPTH = 64
INTEGER = re.compile(r"[-+]?[0-9]{1,100}")
BASED = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Strict(BaseModel):
    """Base of declared models: frozen, and a key that the model lacks is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Declared(Strict):
    """What every declared document carries beside its `spec`."""

    kind: str
    name: str
    owner: str
    on_call: str


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with the line (from 1) and the path where it is."""

    line: int | None
    path: str
    text: str

    def __str__(self) -> str:
        place = [f"line {self.line}"] if self.line is not None else []
        return ": ".join([*place, *([self.path] if self.path else []), self.text])


class DocumentError(InvalidArgument):
    """A declared document is wrong; `problems` says what and where."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        shown = "; ".join(str(problem) for problem in problems[:MAX_SHOWN])
        super().__init__(
            "DOCUMENT_INVALID",
            f"{source}: {shown}",
            {"document": source},
            violations={problem.path or "document": str(problem) for problem in problems},
        )


@dataclass(frozen=True)
class Document:
    """A parsed YAML document: plain data, and the line of each value by its path."""

    source: str
    data: dict[str, Any]
    lines: Mapping[Location, int]

    def check(self, model: type[M]) -> M:
        """Return the document as a model; raise DocumentError with every problem."""
        return _check(model, self.data, self.source, self.lines)


def read_documents(path: Path) -> list[Document]:
    """Return the documents of a YAML file; raise DocumentError if it is not readable as such."""
    if path.stat().st_size > MAX_BYTES:
        raise DocumentError(str(path), [Problem(None, "", f"is larger than {MAX_BYTES} bytes")])
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DocumentError(str(path), [Problem(None, "", "is not UTF-8")]) from None
    return parse_documents(content, str(path))


def parse_documents(content: str, source: str) -> list[Document]:
    """Return the documents of a YAML text; anchors, tags, duplicate keys are refused."""
    try:
        problems = _refused(content)
        if problems:
            raise DocumentError(source, problems)
        nodes = list(yaml.compose_all(content, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise DocumentError(source, [Problem(line, "", str(error.problem))]) from None
    except yaml.YAMLError as error:
        raise DocumentError(source, [Problem(None, "", f"is not YAML: {error}")]) from None
    return [_document(node, source) for node in nodes if node is not None]


def check_data(model: type[M], data: Mapping[str, Any], source: str = "document") -> M:
    """Return data that came without lines (a Struct) as a model; raise DocumentError."""
    return _check(model, data, source, {})


def _check(
    model: type[M], data: Mapping[str, Any], source: str, lines: Mapping[Location, int]
) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        rows = error.errors(include_url=False, include_input=False)
        problems = [
            Problem(_line(row["loc"], lines), path_of(row["loc"]), row["msg"]) for row in rows
        ]
        raise DocumentError(source, problems) from None


def path_of(location: Location) -> str:
    """Return `steps[0].weight` for ("steps", 0, "weight")."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _line(location: Location, lines: Mapping[Location, int]) -> int | None:
    """Return the line of the deepest part of a location that the document has."""
    for length in range(len(location), -1, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return None


def _refused(content: str) -> list[Problem]:
    """Return where a text has what a declared document must not: anchors, tags, a deep nest."""
    problems: list[Problem] = []
    depth = 0
    for event in yaml.parse(content, yaml.SafeLoader):
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            return [*problems, Problem(line, "", f"nests deeper than {MAX_DEPTH}")]
        if getattr(event, "anchor", None) is not None:
            problems.append(Problem(line, "", "anchors and aliases are not allowed"))
        if getattr(event, "tag", None) is not None:
            problems.append(Problem(line, "", "tags are not allowed"))
    return problems


def _document(node: yaml.Node, source: str) -> Document:
    reader = _Reader()
    data = reader.value(node, ())
    if not isinstance(data, dict):
        reader.problems.append(Problem(node.start_mark.line + 1, "", "must be a mapping"))
    if reader.problems:
        raise DocumentError(source, reader.problems)
    return Document(source, data, reader.lines)


class _Reader:
    """Turns nodes into data while it keeps their lines."""

    def __init__(self) -> None:
        self.lines: dict[Location, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, location: Location) -> Any:
        """Return the data of a node."""
        self.lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return scalar(node.value) if node.style is None else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*location, i)) for i, child in enumerate(node.value)]
        return self._mapping(node, location)

    def _mapping(self, node: yaml.Node, location: Location) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(line, path_of(location), "a key must be text"))
                continue
            place = (*location, key)
            if key in data:
                self.problems.append(Problem(line, path_of(place), "is given twice"))
            self.lines.setdefault(place, line)
            data[key] = self.value(value_node, place)
        return data


def scalar(text: str) -> str | bool | int | float | None:
    """Return what a plain scalar means by the core schema of YAML 1.2 (section 10.3.2).

    `no`, `12:30` and `2013-01-01` are text there, as they are in JSON.
    """
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if INTEGER.fullmatch(text):
        return int(text)
    if text.startswith(("0o", "0x")) and BASED.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text) or text.lstrip("+-").lower() in (".inf", ".nan"):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


def canonical(data: Mapping[str, Any]) -> str:
    """Return a document in canonical form: sorted keys, no white space."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_of(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document in canonical form, in hex."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()
