"""Settings of inference, `VOLARY_INFERENCE_...`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from volary_kit.settings import ServiceSettings

from volary_inference.rest.settings import MAX_BODY_BYTES, MAX_JSON_BYTES


class InferenceSettings(ServiceSettings, service="inference"):
    """The data listener is on `port`, the control listener on `control_port`.

    `instance` names the replica, stable over its restarts. `address` is what others reach the
    data listener by, when it is not host:port. `failpoints` does what `--failpoints` does.
    `engine` says who answers on `port`: `python`, `native` (an error where it is not built), or
    `auto`: the native one where it is built, loads and fits the other settings. With `rest_port`
    V2 is spoken over HTTP too, for this replica alone; 0 takes a free port, None none.
    """

    control_port: int = Field(default=0, ge=0, le=65_535)
    address: str | None = None
    rest_port: int | None = Field(default=None, ge=0, le=65_535)
    rest_max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1_024)
    rest_max_json_bytes: int = Field(default=MAX_JSON_BYTES, ge=1_024)
    failpoints: bool = False
    engine: Literal["auto", "native", "python"] = "auto"
    threads: int = Field(default=64, ge=1, le=1_024)
    streams: int = Field(default=32, ge=1, le=1_024)
    max_batch_rows: int = Field(default=64, ge=1, le=4_096)
    max_batch_delay_us: int = Field(default=0, ge=0, le=1_000_000)
    event_capacity: int = Field(default=65_536, ge=0)
    max_artifact_bytes: int = Field(default=1 << 30, gt=0)
    stream_message_timeout_s: float = Field(default=30.0, gt=0)
    # begins the keys of the segments that callers on this machine may register; None: no shared
    # memory at all
    shared_memory_prefix: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{2,62}$"
    )

    # run graphs on TensorRT; a version that cannot be is refused, never run elsewhere instead
    tensorrt: bool = False
    # run graphs by onnxruntime on the GPU, under the same rule
    cuda: bool = False
    # of the child process in which an artifact is loaded for the first time
    trial_memory_bytes: int = Field(default=4 << 30, ge=1 << 28)
    trial_timeout_s: float = Field(default=120.0, gt=0)

    # what graphs may hold in memory; beyond it the least recently used are forgotten until they are
    # asked for, and what there is no room for is first read when it is. 0: no bound
    memory_budget_bytes: int = Field(default=0, ge=0)
    # a graph that nobody asked for so long is forgotten until somebody does; 0: never
    idle_forget_s: float = Field(default=0.0, ge=0)
    # false: versions in production are forgotten like all others, where a replica holds more
    # models than fit
    pin_production: bool = True

    # how long a look at the kept replies may take; after that it is a miss
    response_cache_timeout_s: float = Field(default=0.005, gt=0, le=1)

    # how long after SIGTERM the last replica that has a version with traffic goes on answering,
    # until another one does; 0: not at all
    last_wait_s: float = Field(default=12.0, ge=0, le=300)

    gateway_address: str | None = None
    registry_address: str | None = None
    features_address: str | None = None
