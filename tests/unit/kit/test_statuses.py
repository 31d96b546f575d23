"""The table between errors and statuses: total, and the same way back."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from volary_kit import errors
from volary_kit.errors import VolaryError
from volary_kit.statuses import (
    CODES,
    DETAILS_KEY,
    ERRORS,
    code_of,
    error_of,
    error_of_rpc,
    status_of,
)


def tree(root: type[VolaryError] = VolaryError) -> Iterator[type[VolaryError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from tree(child)


def test_every_error_has_a_code() -> None:
    assert set(tree()) == set(CODES)


def test_every_code_has_an_error() -> None:
    assert set(ERRORS) == set(code_pb2.Code.values()) - {code_pb2.OK}


@pytest.mark.parametrize("kind", [kind for kind in tree() if kind is not errors.Internal])
def test_an_error_comes_back_as_it_was(kind: type[VolaryError]) -> None:
    sent = kind(
        "BIRD_GONE", "the bird is gone", {"bird": "7"}, field="steps[0].weight", retry_after_s=1.5
    )
    got = error_of(status_of(sent))
    assert type(got) is kind
    assert vars(got) == vars(sent)


def test_every_status_carries_error_info() -> None:
    for kind in tree():
        status = status_of(kind("REASON", "text"))
        assert ErrorInfo.DESCRIPTOR.full_name in status.details[0].type_url


def test_an_internal_error_keeps_its_text_to_itself() -> None:
    status = status_of(errors.Internal("DSN", "postgres://user:password@host", {"error_id": "e1"}))
    assert b"postgres" not in status.SerializeToString()
    assert error_of(status).metadata == {"error_id": "e1"}


def test_an_error_of_a_service_takes_its_parents_code() -> None:
    class NestTaken(errors.AlreadyExists):
        pass

    assert code_of(NestTaken("NEST_TAKEN", "taken")) == code_pb2.ALREADY_EXISTS


def test_details_are_of_their_types() -> None:
    status = status_of(errors.InvalidArgument("BAD", "bad", field="name", retry_after_s=2))
    kinds = [detail.type_url.rpartition("/")[2] for detail in status.details]
    wanted = [kind.DESCRIPTOR.full_name for kind in (ErrorInfo, BadRequest, RetryInfo)]
    assert kinds == wanted


def test_a_status_fits_into_headers() -> None:
    long = "x" * 100_000
    error = errors.InvalidArgument(
        "BAD",
        long,
        {f"key{i}": long for i in range(100)},
        violations={f"{long}{i}": long for i in range(1_000)},
    )
    status = status_of(error)
    assert len(status.SerializeToString()) + len(status.message) < 8 * 1024


def test_a_call_without_details_is_mapped_by_its_code() -> None:
    failure = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="refused"
    )
    error = error_of_rpc(failure)
    assert (type(error), error.reason) == (errors.Unavailable, "UNAVAILABLE")


@pytest.mark.parametrize(
    "details", [b"\xff\xff", Status(code=code_pb2.NOT_FOUND).SerializeToString()]
)
def test_details_that_do_not_fit_the_code_are_not_believed(details: bytes) -> None:
    trailing = grpc.aio.Metadata((DETAILS_KEY, details))
    failure = grpc.aio.AioRpcError(
        grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailing, details="late"
    )
    assert type(error_of_rpc(failure)) is errors.Aborted
