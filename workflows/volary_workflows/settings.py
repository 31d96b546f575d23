"""Settings of the worker."""

from __future__ import annotations

from volary_kit.settings import ServiceSettings


class WorkflowsSettings(ServiceSettings, service="workflows"):
    """What the worker reads beside the common settings: where its peers are.

    With `failpoints` a file below `data_dir/failpoints` holds the activity that it names.
    """

    ingest_address: str | None = None
    features_address: str | None = None
    trainer_address: str | None = None
    registry_address: str | None = None
    gateway_address: str | None = None
    monitor_address: str | None = None
    max_activities: int = 100
    failpoints: bool = False
    webhook_origins: tuple[str, ...] = ()  # such as https://hooks.example.com; no other is called
