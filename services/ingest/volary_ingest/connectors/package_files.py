"""Data files of installed Python distributions, found by their metadata and never imported."""

from __future__ import annotations

import io
import zipfile
from importlib import metadata
from pathlib import Path

import polars as pl
from volary_kit.errors import FailedPrecondition

from volary_ingest.domain.source import PackageFiles

MAX_BYTES = 1 << 30


def read_package_file(connector: PackageFiles) -> pl.DataFrame:
    """Return a CSV file, or the one member of its zip, as text columns.

    Raises FailedPrecondition `SOURCE_FILE_NOT_FOUND` when the distribution is not installed or
    does not list the file, `SOURCE_FILE_REFUSED` when it is no such file.
    """
    data = _content(_path(connector), connector)
    try:
        return pl.read_csv(
            data,
            infer_schema=False,
            null_values=list(connector.missing),
        )
    except pl.exceptions.PolarsError as error:
        raise _refused(connector, f"it is not a CSV table: {error}") from error


def _path(connector: PackageFiles) -> Path:
    try:
        listed = metadata.files(connector.package) or []
    except metadata.PackageNotFoundError:
        raise _missing(connector, "the distribution is not installed") from None
    found = next((each for each in listed if str(each) == connector.file), None)
    path = None if found is None else Path(str(found.locate()))
    if path is None or not path.is_file():
        raise _missing(connector, "the distribution does not have the file")
    return path


def _content(path: Path, connector: PackageFiles) -> bytes:
    if path.suffix != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            members = archive.infolist()
            if len(members) != 1:
                raise _refused(connector, f"the archive has {len(members)} members, not one")
            if members[0].file_size > MAX_BYTES:
                raise _refused(connector, f"it unpacks to more than {MAX_BYTES} bytes")
            return archive.read(members[0])
    except zipfile.BadZipFile:
        raise _refused(connector, "it is no zip archive") from None


def _missing(connector: PackageFiles, text: str) -> FailedPrecondition:
    return FailedPrecondition(
        "SOURCE_FILE_NOT_FOUND",
        f"{connector.file} of {connector.package}: {text}",
        {"package": connector.package, "file": connector.file},
    )


def _refused(connector: PackageFiles, text: str) -> FailedPrecondition:
    return FailedPrecondition(
        "SOURCE_FILE_REFUSED",
        f"{connector.file} of {connector.package}: {text}",
        {"package": connector.package, "file": connector.file},
    )
