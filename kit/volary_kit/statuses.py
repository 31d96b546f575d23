"""One table between the error tree and `google.rpc.Status`, read in both directions.

Every status that leaves carries `ErrorInfo` (AIP-193); a wrong field adds `BadRequest`, a
time to come back adds `RetryInfo`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from volary_kit import errors
from volary_kit.errors import VolaryError
from volary_kit.timestamps import MICROS, duration_from_us, duration_us

M = TypeVar("M", bound=Message)
DOMAIN = "volary.dev"
DETAILS_KEY = "grpc-status-details-bin"
# a status travels in HTTP/2 headers, whose usual bound is 8 KiB for all of them: the message
# goes twice (grpc-message, details), 1.5 KiB; 12 violations of 2 x 160 bytes, 3.8 KiB
MAX_MESSAGE = 768
MAX_TEXT = 160
MAX_VIOLATIONS = 12
MAX_METADATA = 12
# grpc.aio loses the status of a stream that the server ends while the client writes, and says this
CORE_ERROR = "Internal error from Core"
# a reason is a constant of our own code; the text may hold anything
REDACTED = "an internal error happened; quote the error id when you report it"

CODES: dict[type[VolaryError], int] = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.OutOfRange: code_pb2.OUT_OF_RANGE,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.Aborted: code_pb2.ABORTED,
    errors.ResourceExhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    errors.Cancelled: code_pb2.CANCELLED,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.Unimplemented: code_pb2.UNIMPLEMENTED,
    errors.DataLoss: code_pb2.DATA_LOSS,
    errors.Internal: code_pb2.INTERNAL,
}
ERRORS: dict[int, type[VolaryError]] = {code: error for error, code in CODES.items()} | {
    code_pb2.UNKNOWN: errors.Internal,
}
GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def code_of(error: VolaryError) -> int:
    """Return the code of an error; a subclass that the table lacks takes its parent's."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return code_pb2.INTERNAL


def new_error_id() -> str:
    """Return a fresh id that joins the caller's report with our log."""
    return uuid.uuid4().hex


def status_of(error: VolaryError) -> Status:
    """Return what a caller may see of an error; an Internal keeps only its error id."""
    code = code_of(error)
    if code == code_pb2.INTERNAL:
        return _redacted(error)
    status = Status(code=code, message=error.message[:MAX_MESSAGE])
    info = ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in list(error.metadata.items())[:MAX_METADATA]:
        info.metadata[key] = str(value)[:MAX_TEXT]
    _attach(status, info)
    if error.violations:
        shown = list(error.violations.items())[:MAX_VIOLATIONS]
        rows = [
            BadRequest.FieldViolation(field=field[:MAX_TEXT], description=text[:MAX_TEXT])
            for field, text in shown
        ]
        _attach(status, BadRequest(field_violations=rows))
    if error.retry_after_s is not None:
        delay = duration_from_us(int(error.retry_after_s * MICROS))
        _attach(status, RetryInfo(retry_delay=delay))
    return status


def _redacted(error: VolaryError) -> Status:
    error_id = error.metadata.get("error_id") or new_error_id()
    status = Status(code=code_pb2.INTERNAL, message=REDACTED)
    info = ErrorInfo(reason=error.reason, domain=DOMAIN)
    info.metadata["error_id"] = error_id
    _attach(status, info)
    return status


def _attach(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def error_of(status: Status) -> VolaryError:
    """Return the error that a status stands for."""
    kind = ERRORS.get(status.code, errors.Internal)
    info, violations, retry_after_s = ErrorInfo(), {}, None
    for detail in status.details:
        if bad := unpacked(detail, BadRequest):
            violations = {row.field: row.description for row in bad.field_violations}
        elif retry := unpacked(detail, RetryInfo):
            retry_after_s = duration_us(retry.retry_delay) / MICROS
        elif found := unpacked(detail, ErrorInfo):
            info = found
    reason = info.reason or code_pb2.Code.Name(status.code)
    return kind(
        reason,
        status.message,
        dict(info.metadata),
        violations=violations,
        retry_after_s=retry_after_s,
    )


def unpacked(detail: AnyMessage, kind: type[M]) -> M | None:
    """Return the message in a detail if it is of that kind and whole."""
    message = kind()
    try:
        return message if detail.Unpack(message) else None
    except DecodeError:
        return None


def error_of_rpc(failure: grpc.RpcError) -> VolaryError:
    """Return the error behind a failed gRPC call, with details when the server sent them."""
    code, details, trailing = _parts(failure)
    if code == code_pb2.INTERNAL and details == CORE_ERROR:
        return errors.Unavailable("STREAM_ENDED", "the stream ended while it was written to")
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = Status.FromString(value)
            except DecodeError:
                break
            if status.code == code:
                return error_of(status)
    return error_of(Status(code=code, message=details))


def _parts(failure: grpc.RpcError) -> tuple[int, str, Iterable[tuple[str, str | bytes]]]:
    if not isinstance(failure, grpc.Call | grpc.aio.AioRpcError):
        return code_pb2.UNKNOWN, "the call failed", ()
    code = failure.code()
    number = code_pb2.UNKNOWN if code is None else int(code.value[0])
    return number, failure.details() or "", failure.trailing_metadata() or ()


def code_name(error: VolaryError) -> str:
    """Return the name of an error's code, as `NOT_FOUND`."""
    return code_pb2.Code.Name(code_of(error))
