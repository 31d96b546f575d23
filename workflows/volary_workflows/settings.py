"""Settings of the worker."""

from __future__ import annotations

from pydantic import SecretStr
from volary_kit.settings import ServiceSettings

from volary_workflows.deployments import BUILD


class WorkflowsSettings(ServiceSettings, service="workflows"):
    """What the worker reads beside the common settings: where its peers are.

    With a `deployment` Temporal keeps the workflows of each build apart: each ends with the build
    that began it, and a worker that `takes_over` gets what begins from then on.
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
    deployment: str = ""  # of Temporal's worker versioning; empty: any worker takes any workflow
    build_id: str = BUILD
    takes_over: bool = True
    webhook_origins: tuple[str, ...] = ()  # such as https://hooks.example.com; no other is called
    webhook_secret: SecretStr = SecretStr("")  # signs what they are told; empty: nothing is signed
