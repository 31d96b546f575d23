"""The datatypes of the Open Inference Protocol V2 and how numpy stores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BF16_EXPONENT = np.uint16(0x7F80)
BF16_FRACTION = np.uint16(0x007F)


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype: its array type, and the field of typed contents that may carry it.

    `contents` is empty for what travels raw only. BF16 is kept as its 16 bits: numpy has no
    type for it.
    """

    name: str
    dtype: np.dtype
    contents: str

    @property
    def is_bytes(self) -> bool:
        """True for BYTES, whose elements have no fixed size."""
        return self.name == "BYTES"

    @property
    def is_integer(self) -> bool:
        """True for the signed and unsigned integers."""
        return self.name != "BF16" and self.dtype.kind in "iu"

    def has_nan(self, array: np.ndarray) -> bool:
        """Say whether an element is NaN; no integer, truth value or text is."""
        if self.name == "BF16":
            is_special = (array & BF16_EXPONENT) == BF16_EXPONENT
            return bool((is_special & ((array & BF16_FRACTION) != 0)).any())
        if self.dtype.kind != "f" or not array.size:
            return False
        least = np.minimum.reduce(array, axis=None)  # NaN as soon as one element is
        return bool(least != least)

    def is_finite(self, array: np.ndarray) -> bool:
        """Say whether no element is NaN or an infinity."""
        if self.name == "BF16":
            return not bool(((array & BF16_EXPONENT) == BF16_EXPONENT).any())
        return self.dtype.kind != "f" or bool(np.isfinite(array).all())


def _datatype(name: str, dtype: str, contents: str = "") -> Datatype:
    return Datatype(name, np.dtype(dtype), contents)


DATATYPES: dict[str, Datatype] = {
    row.name: row
    for row in (
        _datatype("BOOL", "?", "bool_contents"),
        _datatype("UINT8", "<u1", "uint_contents"),
        _datatype("UINT16", "<u2", "uint_contents"),
        _datatype("UINT32", "<u4", "uint_contents"),
        _datatype("UINT64", "<u8", "uint64_contents"),
        _datatype("INT8", "<i1", "int_contents"),
        _datatype("INT16", "<i2", "int_contents"),
        _datatype("INT32", "<i4", "int_contents"),
        _datatype("INT64", "<i8", "int64_contents"),
        _datatype("FP16", "<f2"),
        _datatype("FP32", "<f4", "fp32_contents"),
        _datatype("FP64", "<f8", "fp64_contents"),
        _datatype("BF16", "<u2"),
        _datatype("BYTES", "O", "bytes_contents"),
    )
}
