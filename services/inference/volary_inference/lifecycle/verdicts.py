"""What a replica remembers of an artifact whose first load went well, on disk by digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from volary_inference.domain.signatures import Signature, TensorSpec
from volary_inference.lifecycle.package import Package


@dataclass(frozen=True)
class Verdict:
    """What a trial found: enough to announce a version without its graph in memory."""

    signature: Signature

    def as_document(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "inputs": _rows(self.signature.inputs),
            "outputs": _rows(self.signature.outputs),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Verdict:
        """Read it back; raise ValueError, TypeError or KeyError for anything else."""
        return cls(Signature(_specs(document["inputs"]), _specs(document["outputs"])))


class Verdicts:
    """A small file an artifact: what went well here, with these golden rows and this runtime."""

    def __init__(self, folder: Path, max_rows: int) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._max_rows = max_rows

    def find(self, package: Package, crashes: int) -> Verdict | None:
        """Return a verdict that still holds: the artifact has not crashed since."""
        try:
            document = json.loads(self._path(package).read_text("utf-8"))
            return Verdict.from_document(document) if document["crashes"] == crashes else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, package: Package, verdict: Verdict, crashes: int) -> None:
        """Remember a verdict, given after so many crashes of the artifact."""
        path = self._path(package)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(verdict.as_document() | {"crashes": crashes}), "utf-8")
        draft.replace(path)

    def _path(self, package: Package) -> Path:
        tried_with = [package.golden, self._max_rows, onnxruntime.__version__]
        name = hashlib.sha256(json.dumps(tried_with, sort_keys=True).encode()).hexdigest()[:16]
        return self._folder / f"{package.description.digest.removeprefix('sha256:')}-{name}.json"


def _rows(specs: tuple[TensorSpec, ...]) -> list[list[object]]:
    return [[spec.name, spec.datatype, list(spec.shape)] for spec in specs]


def _specs(rows: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(str(name), str(datatype), tuple(map(int, shape)))
        for name, datatype, shape in rows
    )
