"""A declared source: where records come from, how they are read, and what they must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field as Bounded
from pydantic import StringConstraints, model_validator
from volary_kit.documents import Declared, Strict, check_data

from volary_ingest.domain.columns import ColumnName, ColumnType
from volary_ingest.domain.contract import (
    ByColumn,
    NotBefore,
    NullRate,
    ReferencesRule,
    RowRule,
    Rule,
)
from volary_ingest.domain.derivation import Derivation, Lookup

OWN_COLUMNS = ("record_id", "event_time", "known_at")
PACKAGE_FILE = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.csv(\.zip)?$"
MissingTexts = tuple[Annotated[str, StringConstraints(max_length=32)], ...]


class PackageFiles(Strict):
    """CSV files that an installed Python distribution carries, read without importing it."""

    kind: Literal["python_package_files"]
    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    file: Annotated[str, StringConstraints(pattern=PACKAGE_FILE, max_length=256)]
    missing: MissingTexts = ("",)


class Pushed(Strict):
    """Records come by PushRecords alone."""

    kind: Literal["push"]
    missing: MissingTexts = ("",)


Connector = Annotated[PackageFiles | Pushed, Bounded(discriminator="kind")]


class Field(Strict):
    """A column as it comes: its name here, its name there, its type.

    `format` is a strptime format of a time; a `timestamp` without one is RFC 3339. A text that
    does not say such a value puts its row aside, or counts as missing when `malformed` says so.
    """

    name: ColumnName
    type: ColumnType
    source: str | None = Bounded(default=None, alias="from", min_length=1, max_length=128)
    format: str | None = Bounded(default=None, min_length=2, max_length=64)
    malformed: Literal["quarantine", "missing"] = "quarantine"
    keep: bool = True

    @property
    def column(self) -> str:
        """Its name where it comes from."""
        return self.source or self.name


class SourceSpec(Strict):
    """Everything particular of one source."""

    description: str = Bounded(default="", max_length=2000)
    connector: Connector
    fields: list[Field] = Bounded(min_length=1, max_length=1000)
    derive: list[Derivation] = Bounded(default=[], max_length=200)
    keys: list[ColumnName] = Bounded(min_length=1, max_length=16)
    event_time: ColumnName
    known_at: ColumnName
    contract: list[Rule] = Bounded(default=[], max_length=500)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        columns = self._columns_in_order()
        wanted = [*self.keys, self.event_time, self.known_at]
        for column in [*wanted, *(name for rule in self.contract for name in _read_by(rule))]:
            if column not in columns:
                raise ValueError(f"column {column} is neither a field nor derived")
        _unique((rule.name for rule in self.contract), "rule")
        self._require_instants()
        return self

    def _columns_in_order(self) -> set[str]:
        _unique([each.name for each in [*self.fields, *self.derive]], "column")
        columns = {field.name for field in self.fields}
        for step in self.derive:
            missing = step.inputs() - columns
            if missing:
                raise ValueError(
                    f"{step.name} reads {', '.join(sorted(missing))} before it is there"
                )
            columns.add(step.name)
        clash = columns & set(OWN_COLUMNS)
        if clash:
            raise ValueError(f"{', '.join(sorted(clash))} is a name that every record has already")
        local = [f.name for f in self.fields if f.type == "local_timestamp" and f.keep]
        if local:
            raise ValueError(
                f"{', '.join(local)} has no zone: derive local_to_utc, and keep: false"
            )
        return columns

    def _require_instants(self) -> None:
        instants = {field.name for field in self.fields if field.type == "timestamp"}
        for step in self.derive:
            made = step.shift or step.clock_after or step.local_to_utc
            if made is not None or step.type == "timestamp":
                instants.add(step.name)
        for column in (self.event_time, self.known_at):
            if column not in instants:
                raise ValueError(f"{column} is no instant: event_time and known_at must be")

    def kept(self) -> list[str]:
        """Return the columns of a snapshot, without those that every record has."""
        return [each.name for each in [*self.fields, *self.derive] if each.keep]

    def references(self) -> dict[str, set[str]]:
        """Return the columns that this source reads of other sources."""
        found: dict[str, set[str]] = {}
        for step in self.derive:
            if isinstance(step.operation, Lookup):
                read = {step.operation.key, step.operation.column}
                found.setdefault(step.operation.source, set()).update(read)
        for rule in self.contract:
            if isinstance(rule, ReferencesRule):
                found.setdefault(rule.source, set()).add(rule.key)
        return found


class Source(Declared):
    """The document of kind `Source`."""

    kind: Literal["Source"]  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    owner: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    on_call: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    spec: SourceSpec

    @model_validator(mode="after")
    def _not_itself(self) -> Self:
        if self.name in self.spec.references():
            raise ValueError("a source cannot look itself up")
        return self


def read_source(document: Mapping[str, Any]) -> Source:
    """Return a declared source; raise InvalidArgument `DOCUMENT_INVALID` that names each fault."""
    return check_data(Source, document, "source")


def _read_by(rule: Rule) -> list[str]:
    columns = [rule.column] if isinstance(rule, RowRule | NullRate) else []
    if isinstance(rule, NotBefore):
        columns.append(rule.other)
    if isinstance(rule, RowRule) and isinstance(rule.value, ByColumn):
        columns.append(rule.value.by)
    return columns


def _unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name} is declared twice")
        seen.add(name)
