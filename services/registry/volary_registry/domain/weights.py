"""What a safetensors artifact must be: one header, no name twice, no name that is a path."""

from __future__ import annotations

import json
import re

from volary_kit.errors import InvalidArgument

NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
LENGTH_BYTES = 8
MAX_HEADER = 100 << 20


def check_weights(data: bytes) -> None:
    """Raise InvalidArgument `ARTIFACT_REFUSED` for bytes that are not plain safetensors."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or not 2 <= length <= min(MAX_HEADER, len(data) - LENGTH_BYTES):
        raise _refused("it has no header")
    try:
        header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length], object_pairs_hook=_once)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _refused("its header is not JSON") from None
    for name, tensor in header.items():
        if name != "__metadata__" and not NAME.fullmatch(name):
            raise _refused("a tensor's name is malformed")
        if not isinstance(tensor, dict):
            raise _refused("a tensor is not described")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _refused("a name is given twice")
    return names


def _refused(text: str) -> InvalidArgument:
    return InvalidArgument("ARTIFACT_REFUSED", f"the artifact is refused: {text}")
