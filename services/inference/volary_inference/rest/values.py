"""The elements of a tensor in JSON, to the bytes that gRPC carries and back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from volary_kit.errors import FailedPrecondition, InvalidArgument

from volary_inference.domain.datatypes import DATATYPES, Datatype
from volary_inference.domain.tensors import (
    checked_shape,
    datatype_of,
    from_raw,
    from_values,
    is_finite,
    to_raw,
    to_values,
)


def raw_of(data: object, datatype: str, shape: Sequence[int], field: str) -> bytes:
    """Return the bytes of `data`, flat or nested as its shape; raise InvalidArgument.

    A JSON number becomes the nearest value of its datatype. FP16 and BF16 have no JSON form.
    """
    kind, sizes = datatype_of(datatype, field), checked_shape(shape, field)
    if not kind.contents:
        raise InvalidArgument(
            "BINARY_ONLY", f"{datatype} travels as binary data", field=f"{field}.data"
        )
    values, nested = flattened(data, f"{field}.data")
    if len(nested) > 1 and nested != sizes:
        text = f"data is nested as {list(nested)}, its shape is {list(sizes)}"
        raise InvalidArgument("DATA_SHAPE_MISMATCH", text, field=f"{field}.data")
    if not set(map(type, values)) <= _allowed(kind):
        raise InvalidArgument(
            "DATA_TYPE_MISMATCH", f"an element is no {datatype}", field=f"{field}.data"
        )
    if kind.is_bytes:
        values = [_encoded(each, field) for each in values]
    with np.errstate(over="ignore"):  # an infinity is refused below
        tensor = from_values("", datatype, sizes, values, field)
    if not kind.is_bytes and not is_finite(tensor):
        raise _out_of_range(datatype, field)
    return to_raw(tensor)


def flattened(data: object, field: str) -> tuple[list[Any], tuple[int, ...]]:
    """Return the elements in row-major order and the sizes of the lists around them."""
    if not isinstance(data, list):
        raise InvalidArgument("JSON_TYPE_MISMATCH", "data must be a list", field=field)
    level, sizes = data, [len(data)]
    while level and isinstance(level[0], list):
        width = len(level[0])
        if any(not isinstance(row, list) or len(row) != width for row in level):
            raise InvalidArgument("DATA_RAGGED", "lists of one depth differ in length", field=field)
        sizes.append(width)
        level = list(chain.from_iterable(level))
    return level, tuple(sizes)


def data_of(raw: bytes, datatype: str, shape: Sequence[int], field: str) -> list[Any]:
    """Return the elements of an output, flat; raise FailedPrecondition where JSON has no form."""
    kind = DATATYPES[datatype]
    if not kind.contents:
        raise _binary_only(f"{datatype} has no form in JSON", field)
    if not raw or not math.prod(shape):
        return []
    tensor = from_raw("", datatype, shape, raw, field)
    if kind.is_bytes:
        try:
            return [str(each, "utf-8") for each in to_values(tensor)]  # pyright: ignore[reportArgumentType]
        except UnicodeDecodeError:
            raise _binary_only("a string is not UTF-8", field) from None
    if not is_finite(tensor):
        raise _binary_only("an infinity has no form in JSON", field)
    return to_values(tensor)


def _allowed(kind: Datatype) -> set[type]:
    if kind.is_bytes:
        return {str}
    if kind.name == "BOOL":
        return {bool}
    return {int} if kind.is_integer else {int, float}


def _encoded(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            "DATA_TYPE_MISMATCH", "a string is not Unicode text", field=f"{field}.data"
        ) from None


def _out_of_range(datatype: str, field: str) -> InvalidArgument:
    text = f"a value does not fit {datatype}"
    return InvalidArgument("VALUE_OUT_OF_RANGE", text, field=f"{field}.data")


def _binary_only(why: str, field: str) -> FailedPrecondition:
    return FailedPrecondition("BINARY_ONLY", f"{why}: ask for {field} as binary data")
