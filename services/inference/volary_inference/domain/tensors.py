"""Tensors as V2 has them: decoded and encoded exactly, refused when they contradict themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from volary_kit.datatypes import joined, split
from volary_kit.errors import InvalidArgument

from volary_inference.domain.datatypes import DATATYPES, Datatype

MAX_RANK = 32  # numpy's own limit is 64; no model comes near
MAX_ELEMENTS = 1 << 28  # a shape of nothing but its header must not reserve memory


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array; BYTES holds `bytes` objects, BF16 its bits as uint16."""

    name: str
    datatype: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return self.array.shape


def datatype_of(name: str, field: str) -> Datatype:
    """Return a datatype by its V2 name; raise InvalidArgument for any other."""
    found = DATATYPES.get(name)
    if found is None:
        raise InvalidArgument(
            "DATATYPE_UNKNOWN",
            f"{field}.datatype is none of {', '.join(DATATYPES)}",
            field=f"{field}.datatype",
        )
    return found


def checked_shape(shape: Iterable[int], field: str) -> tuple[int, ...]:
    """Return the sizes of a request's tensor; raise InvalidArgument if they cannot be its shape."""
    sizes = tuple(shape)
    if not 1 <= len(sizes) <= MAX_RANK:
        raise _shape_error(f"a tensor has 1 to {MAX_RANK} dimensions, not {len(sizes)}", field)
    elements = 1
    for size in sizes:
        if size < 1:
            raise _shape_error(f"a dimension of a request is at least 1, not {size}", field)
        elements *= size  # Python integers: the product cannot wrap around
        if elements > MAX_ELEMENTS:
            raise _shape_error(f"a tensor has at most {MAX_ELEMENTS} elements", field)
    return sizes


def _shape_error(text: str, field: str) -> InvalidArgument:
    return InvalidArgument("SHAPE_INVALID", text, field=f"{field}.shape")


def from_raw(name: str, datatype: str, shape: Iterable[int], raw: bytes, field: str) -> Tensor:
    """Decode little-endian row-major bytes; fixed-size datatypes are not copied."""
    kind, sizes = datatype_of(datatype, field), checked_shape(shape, field)
    elements = math.prod(sizes)
    if kind.is_bytes:
        return Tensor(name, datatype, _filled(_elements(raw, elements, field), sizes))
    expected = elements * kind.dtype.itemsize
    if len(raw) != expected:
        raise InvalidArgument(
            "RAW_SIZE_MISMATCH",
            f"{datatype} of shape {list(sizes)} is {expected} bytes, {len(raw)} came",
            {"tensor": name},
            field=field,
        )
    return Tensor(name, datatype, np.frombuffer(raw, kind.dtype).reshape(sizes))


def from_values(
    name: str, datatype: str, shape: Iterable[int], values: Sequence[object], field: str
) -> Tensor:
    """Make a tensor of typed contents; raise InvalidArgument where a value does not fit."""
    kind, sizes = datatype_of(datatype, field), checked_shape(shape, field)
    elements = math.prod(sizes)
    if len(values) != elements:
        raise InvalidArgument(
            "CONTENTS_SIZE_MISMATCH",
            f"shape {list(sizes)} has {elements} elements, {len(values)} came",
            {"tensor": name},
            field=field,
        )
    if kind.is_bytes:
        return Tensor(name, datatype, _filled(values, sizes))
    try:
        array = np.array(values, kind.dtype)
    except OverflowError:
        raise InvalidArgument(
            "VALUE_OUT_OF_RANGE",
            f"a value does not fit {datatype}",
            {"tensor": name},
            field=f"{field}.contents",
        ) from None
    return Tensor(name, datatype, array.reshape(sizes))


def to_raw(tensor: Tensor) -> bytes:
    """Encode as little-endian row-major bytes."""
    kind = DATATYPES[tensor.datatype]
    if kind.is_bytes:
        return joined(tensor.array.ravel())
    return np.ascontiguousarray(tensor.array, kind.dtype).tobytes()


def to_values(tensor: Tensor) -> list[object]:
    """Return the elements in row-major order, for typed contents."""
    return tensor.array.ravel().tolist()


def has_nan(tensor: Tensor) -> bool:
    """Say whether an element is NaN."""
    return DATATYPES[tensor.datatype].has_nan(tensor.array)


def is_finite(tensor: Tensor) -> bool:
    """Say whether no element is NaN or an infinity."""
    return DATATYPES[tensor.datatype].is_finite(tensor.array)


def numbers_of(tensor: Tensor) -> list[float]:
    """Return the elements as doubles, in row-major order; empty for BYTES and BF16."""
    if tensor.datatype in ("BYTES", "BF16"):
        return []
    array = tensor.array if tensor.array.dtype.kind == "f" else tensor.array.astype(np.float64)
    return array.ravel().tolist()


def _elements(raw: bytes, count: int, field: str) -> list[bytes]:
    found = split(raw, count)
    if found is None or len(found) != count:
        raise InvalidArgument(
            "RAW_SIZE_MISMATCH",
            f"the bytes do not hold exactly {count} length-prefixed elements",
            field=field,
        )
    return found


def _filled(values: Sequence[object], sizes: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(sizes)
