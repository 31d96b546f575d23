"""V2's datatypes: one table of how elements travel, and BYTES in raw form."""

from __future__ import annotations

import struct

import pytest
from inference import grpc_service_pb2 as v2
from volary_kit.datatypes import BYTES, FORMS, TYPED, joined, split


def test_typed_forms_are_fields_of_the_contents() -> None:
    fields = v2.InferTensorContents.DESCRIPTOR.fields_by_name.keys()
    assert {form.contents for form in TYPED.values()} == set(fields)
    assert FORMS.keys() - TYPED.keys() == {"FP16", "BF16"}


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {BYTES}))
def test_elements_are_as_wide_as_the_name_says(name: str) -> None:
    bits = 8 if name == "BOOL" else int(name.lstrip("UINTFPB"))
    assert struct.calcsize(f"<{FORMS[name].letter}") * 8 == bits


@pytest.mark.parametrize("elements", [[], [b""], [b"one", b"\x00two", b""]])
def test_bytes_come_back_as_they_were(elements: list[bytes]) -> None:
    assert split(joined(elements), len(elements)) == elements


@pytest.mark.parametrize("data", [b"\x01", b"\x02\x00\x00\x00a", joined([b"a"]) + b"\x00"])
def test_bytes_that_do_not_end_with_an_element_are_none(data: bytes) -> None:
    assert split(data, len(data)) is None


def test_more_elements_than_there_may_be_are_none() -> None:
    assert split(joined([b""] * 3), 2) is None
