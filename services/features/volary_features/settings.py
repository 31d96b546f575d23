"""Settings of features, `VOLARY_FEATURES_...`."""

from __future__ import annotations

from pydantic import Field
from volary_kit.settings import ServiceSettings


class FeaturesSettings(ServiceSettings, service="features"):
    """The kit's settings, the peer that has the snapshots, and limits of the online store.

    `consumes`: one process of a mesh folds the stream, so that a watermark never overtakes its
    records; all others only answer.
    """

    ingest_address: str | None = None
    consumes: bool = True
    store_timeout_s: float = Field(default=0.5, gt=0, le=30)
    last_known_entities: int = Field(default=50_000, ge=0)
