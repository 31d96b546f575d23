"""Settings of the trace receiver, from `VOLARY_TRACES_...`."""

from __future__ import annotations

from pydantic import Field
from volary_kit.settings import ServiceSettings


class TracesSettings(ServiceSettings, service="traces"):
    """What the receiver keeps, and where; the older and the supernumerary go."""

    store_url: str = ""
    max_age_s: float = Field(default=24 * 3600, gt=0)
    max_spans: int = Field(default=500_000, gt=0)  # about 250 MB
    queue_spans: int = Field(default=50_000, gt=0)
    prune_every_s: float = Field(default=10.0, gt=0)
