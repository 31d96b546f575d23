"""Settings of the monitor, `VOLARY_MONITOR_...`."""

from __future__ import annotations

from pydantic import Field
from volary_kit.settings import ServiceSettings


class MonitorSettings(ServiceSettings, service="monitor"):
    """The kit's settings, the peers, and when a part of the prediction log becomes a file."""

    registry_address: str | None = None
    features_address: str | None = None
    log_rows: int = Field(default=20_000, ge=1)  # of a model and day: write at once
    log_age_s: float = Field(default=60.0, gt=0)  # of the oldest row that waits
    log_files: int = Field(default=4, ge=1)  # of a model and day: more are merged into one
