"""Settings of the trainer, `VOLARY_TRAINER_...`."""

from __future__ import annotations

from pydantic import Field
from volary_kit.settings import ServiceSettings


class TrainerSettings(ServiceSettings, service="trainer"):
    """The kit's settings, the peers, and how runs share the machine."""

    features_address: str | None = None
    registry_address: str | None = None
    niceness: int = Field(default=5, ge=0, le=19)
    run_timeout_s: float = Field(default=3_600.0, gt=0)
