"""The datatypes of the Open Inference Protocol V2 and how numpy stores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from volary_kit.datatypes import BYTES, FORMS, Form

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
        return self.name == BYTES

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


def _datatype(name: str, form: Form) -> Datatype:
    return Datatype(name, np.dtype(f"<{form.letter}" if form.letter else "O"), form.contents)


DATATYPES: dict[str, Datatype] = {name: _datatype(name, form) for name, form in FORMS.items()}
