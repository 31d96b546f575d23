"""Where the last prediction of an entity or an input is kept in Redis.

Inference writes it, gateway reads it when no replica of the model answers. The name has project,
model and version, so nothing is ever found across them; the value is the reply as
`inference.ModelInferResponse`, its outputs raw, with its provenance among the parameters.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence

PREFIX = "volary:last:"
REPLIED_AT = "volary_replied_at_us"  # the parameter that says when the model answered
LENGTH = struct.Struct("<Q")
DIGEST_BYTES = 32
TensorBytes = tuple[str, str, Sequence[int], bytes]  # name, datatype, sizes, V2's raw bytes


def key_of_entity(version: str, entity_keys: Mapping[str, str]) -> str:
    """Return the name of what a version said last of an entity; `version` is its resource name."""
    return _key(version, [b"entity", json.dumps(sorted(entity_keys.items())).encode()])


def key_of_inputs(version: str, outputs: Sequence[str], inputs: Iterable[TensorBytes]) -> str:
    """Return the name of what a version said last to an input, asked for these outputs.

    However a tensor came (raw or typed), its name, datatype, sizes and bits are the same.
    """
    parts = [b"inputs", json.dumps(list(outputs)).encode()]
    for name, datatype, shape, raw in sorted(inputs, key=lambda each: each[0]):
        parts += [json.dumps([name, datatype, list(shape)]).encode(), raw]
    return _key(version, parts)


def _key(version: str, parts: Iterable[bytes]) -> str:
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:  # each with its length: no two questions are written alike
        state.update(LENGTH.pack(len(part)))
        state.update(part)
    return f"{PREFIX}{version}/{state.hexdigest()}"
