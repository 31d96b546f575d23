from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from volary_inference.domain.datatypes import DATATYPES
from volary_inference.domain.tensors import (
    Tensor,
    from_raw,
    from_values,
    has_nan,
    is_finite,
    to_raw,
    to_values,
)
from volary_kit.errors import InvalidArgument

FIELD = "inputs[0]"


@pytest.mark.parametrize("name", [name for name in DATATYPES if name != "BYTES"])
def test_raw_bytes_come_back_as_they_were(name: str) -> None:
    kind = DATATYPES[name]
    raw = bytes(range(1, 1 + 6 * kind.dtype.itemsize))
    if name == "BOOL":
        raw = b"\x01\x00\x01\x01\x00\x01"
    tensor = from_raw("x", name, [2, 3], raw, FIELD)
    assert tensor.shape == (2, 3)
    assert to_raw(tensor) == raw


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_bytes_elements_come_back_as_they_were(elements: list[bytes]) -> None:
    raw = b"".join(struct.pack("<I", len(each)) + each for each in elements)
    tensor = from_raw("x", "BYTES", [len(elements)], raw, FIELD)
    assert tensor.array.tolist() == elements
    assert to_raw(tensor) == raw


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x01", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00a", b"\x01\x00\x00\x00ab", b"\0" * 12],
)
def test_bytes_that_disagree_with_their_lengths_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_raw("x", "BYTES", [2], raw, FIELD)
    assert caught.value.reason == "RAW_SIZE_MISMATCH"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("BOOL", [True, False]),
        ("INT8", [-128, 127]),
        ("UINT16", [0, 65535]),
        ("INT64", [-(1 << 63), (1 << 63) - 1]),
        ("UINT64", [0, (1 << 64) - 1]),
        ("FP64", [0.1, -1e300]),
        ("BYTES", [b"a", b""]),
    ],
)
def test_typed_contents_come_back_as_they_were(name: str, values: list[object]) -> None:
    tensor = from_values("x", name, [2, 1], values, FIELD)
    assert tensor.shape == (2, 1)
    assert to_values(tensor) == values


@pytest.mark.parametrize(
    ("name", "value"), [("INT8", 128), ("INT16", -32769), ("UINT8", 256), ("UINT16", 65536)]
)
def test_a_value_beyond_its_datatype_is_refused_not_wrapped(name: str, value: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_values("x", name, [1], [value], FIELD)
    assert caught.value.reason == "VALUE_OUT_OF_RANGE"


@pytest.mark.parametrize(
    "shape",
    [[], [-1], [0], [2, 0], [1 << 31], [1 << 40, 1 << 40], [1 << 62, 4], [1] * 1000, [-(1 << 63)]],
)
def test_shapes_that_no_tensor_has_are_refused(shape: list[int]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_raw("x", "FP32", shape, b"\0" * 4, FIELD)
    assert caught.value.reason == "SHAPE_INVALID"
    assert list(caught.value.violations) == ["inputs[0].shape"]


def test_a_wrong_number_of_bytes_or_values_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="8 bytes, 4 came"):
        from_raw("x", "FP32", [2], b"\0" * 4, FIELD)
    with pytest.raises(InvalidArgument, match="2 elements, 3 came"):
        from_values("x", "FP32", [2], [1.0, 2.0, 3.0], FIELD)


def test_an_unknown_datatype_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_raw("x", "FP128", [1], b"", FIELD)
    assert caught.value.reason == "DATATYPE_UNKNOWN"


@pytest.mark.parametrize(
    ("name", "bits", "nan", "finite"),
    [
        ("BF16", 0x7FC0, True, False),
        ("BF16", 0x7F80, False, False),
        ("BF16", 0x3F80, False, True),
        ("FP16", 0x7E00, True, False),
        ("FP16", 0xFC00, False, False),
        ("FP16", 0x3C00, False, True),
    ],
)
def test_half_precision_nan_and_infinity_are_seen(
    name: str, bits: int, nan: bool, finite: bool
) -> None:
    tensor = from_raw("x", name, [1], struct.pack("<H", bits), FIELD)
    assert has_nan(tensor) is nan
    assert is_finite(tensor) is finite


def test_a_tensor_that_is_not_contiguous_is_written_in_row_major_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert to_raw(Tensor("x", "FP32", array)) == np.ascontiguousarray(array).tobytes()
