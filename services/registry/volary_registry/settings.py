"""Settings of the registry, `VOLARY_REGISTRY_...`."""

from __future__ import annotations

from volary_kit.settings import ServiceSettings


class RegistrySettings(ServiceSettings, service="registry"):
    """The kit's settings and the limits of artifacts."""

    max_artifact_bytes: int = 1 << 31
    max_graph_bytes: int = 1 << 29  # an ONNX file is read whole to be checked
