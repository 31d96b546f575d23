"""Pointers, chains and weights, without a server."""

from __future__ import annotations

import json

import pytest
from volary_kit.errors import InvalidArgument
from volary_registry.domain.chain import Fact, first_bad, link
from volary_registry.domain.production import Change, Pointer, advanced, deltas
from volary_registry.domain.weights import check_weights


def test_the_pointer_moves_only_forward_and_only_to_what_is_whole() -> None:
    pointer = advanced(Pointer(), Change(1, {1: 10_000}))
    assert pointer == Pointer(1, 0, 1, 1)
    split = advanced(pointer, Change(2, {2: 1_000, 1: 9_000}))
    assert (split.version, split.latest_generation) == (1, 2)
    promoted = advanced(split, Change(3, {2: 10_000}))
    assert promoted == Pointer(2, 1, 3, 3)
    assert advanced(promoted, Change(2, {1: 10_000})) == promoted
    back = advanced(promoted, Change(4, {1: 10_000}))
    assert (back.version, back.previous) == (1, 2)


def test_a_stated_production_version_goes_before_the_weights() -> None:
    assert advanced(Pointer(1, 0, 1, 1), Change(2, {2: 5_000, 1: 5_000}, 2)).version == 2


def test_deltas_are_of_metrics_that_both_have() -> None:
    assert deltas({"auc": 0.75, "new": 1.0}, {"auc": 0.5, "old": 2.0}) == {"auc": 0.25}


def test_a_chain_holds_until_a_link_is_changed_or_taken_out() -> None:
    chain = []
    for i in range(4):
        fact = Fact("act", f"thing/{i}", "me", i, "h")
        chain.append(link(fact, chain[-1] if chain else None))
    assert first_bad(chain) == (4, None)
    assert first_bad(chain[:1] + chain[2:]) == (1, chain[2])


def safetensors(header: str) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode()


GOOD = json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        safetensors("{not json"),
        safetensors('{"../a": {}}'),
        safetensors('{"a": {}, "a": {}}'),
        safetensors('{"a": 1}'),
    ],
)
def test_weights_that_are_not_plain_are_refused(data: bytes) -> None:
    check_weights(safetensors(GOOD))
    with pytest.raises(InvalidArgument, match="ARTIFACT_REFUSED"):
        check_weights(data)
