"""Settings of the monitor, `VOLARY_MONITOR_...`."""

from __future__ import annotations

from pydantic import Field, SecretStr
from volary_kit.settings import ServiceSettings


class MonitorSettings(ServiceSettings, service="monitor"):
    """The kit's settings, the peers, when a part of the log becomes a file, who is told."""

    registry_address: str | None = None
    features_address: str | None = None
    log_rows: int = Field(default=20_000, ge=1)  # of a model and day: write at once
    log_age_s: float = Field(default=60.0, gt=0)  # of the oldest row that waits
    log_files: int = Field(default=4, ge=1)  # of a model and day: more are merged into one
    webhook_origins: tuple[str, ...] = ()  # such as https://hooks.example.com; no other is called
    webhook_secret: SecretStr = SecretStr("")  # signs what they are told; empty: nothing is signed
    action_workflows: tuple[str, ...] = ()  # such as ReviewWorkflow@reviews; no other is started
    action_attempts: int = Field(
        default=12, ge=1, le=100
    )  # the last some 25 minutes after the first
    action_lease_s: float = Field(default=30.0, ge=1)  # after a death another tries as late as that
