"""Settings of ingest, `VOLARY_INGEST_...`."""

from __future__ import annotations

from volary_kit.settings import ServiceSettings


class IngestSettings(ServiceSettings, service="ingest"):
    """What every service reads; data lie under `data_dir`."""
