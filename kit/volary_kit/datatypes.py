"""The datatypes of the Open Inference Protocol V2: how their elements travel, typed and raw."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

BYTES = "BYTES"
_LENGTH = struct.Struct("<I")


class Form(NamedTuple):
    """How the elements of one datatype travel.

    `contents` is the field of typed contents, empty for what travels raw only; `letter` is the
    element of raw bytes as `struct` and numpy have it, little-endian, empty for BYTES.
    """

    contents: str
    letter: str


FORMS: Mapping[str, Form] = {
    "BOOL": Form("bool_contents", "?"),
    "UINT8": Form("uint_contents", "B"),
    "UINT16": Form("uint_contents", "H"),
    "UINT32": Form("uint_contents", "I"),
    "UINT64": Form("uint64_contents", "Q"),
    "INT8": Form("int_contents", "b"),
    "INT16": Form("int_contents", "h"),
    "INT32": Form("int_contents", "i"),
    "INT64": Form("int64_contents", "q"),
    "FP16": Form("", "e"),
    "FP32": Form("fp32_contents", "f"),
    "FP64": Form("fp64_contents", "d"),
    "BF16": Form("", "H"),  # its 16 bits: neither struct nor numpy has a type for it
    BYTES: Form("bytes_contents", ""),
}
TYPED: Mapping[str, Form] = {name: form for name, form in FORMS.items() if form.contents}


def joined(elements: Iterable[bytes]) -> bytes:
    """Return the elements of a BYTES tensor as its raw bytes: each after its length."""
    return b"".join([_LENGTH.pack(len(each)) + each for each in elements])


def split(data: bytes, most: int) -> list[bytes] | None:
    """Return the elements of raw BYTES, None unless they are at most so many and end with it."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data) or len(found) == most:
            return None
        at = start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]
        if at > len(data):
            return None
        found.append(data[start:at])
    return found
