"""Where records are read from; every connector yields one frame of text columns."""

from __future__ import annotations

import polars as pl

from volary_ingest.connectors.package_files import read_package_file
from volary_ingest.domain.rows import text_frame
from volary_ingest.domain.source import PackageFiles, Source


def read(source: Source) -> pl.DataFrame:
    """Return everything that a source has of its own; what is only pushed has nothing."""
    connector = source.spec.connector
    if isinstance(connector, PackageFiles):
        return read_package_file(connector)
    return text_frame([], source.spec)
