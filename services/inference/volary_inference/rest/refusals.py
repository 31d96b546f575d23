"""Errors as HTTP has them: a status and `{"error": text}`, with the reason beside it."""

from __future__ import annotations

import math
from typing import Any

from google.rpc import code_pb2
from volary_kit.errors import VolaryError
from volary_kit.statuses import code_of, status_of

# the table of google.rpc.Code; what no handler may do is 499
HTTP_STATUSES: dict[int, int] = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ABORTED: 409,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.CANCELLED: 499,
    code_pb2.INTERNAL: 500,
    code_pb2.DATA_LOSS: 500,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}
TOO_LARGE = "MESSAGE_TOO_LARGE", "BODY_TOO_LARGE", "JSON_TOO_LARGE"


def http_status(error: VolaryError) -> int:
    """Return the HTTP status of an error."""
    return 413 if error.reason in TOO_LARGE else HTTP_STATUSES[code_of(error)]


def document_of(error: VolaryError) -> dict[str, Any]:
    """Return what a caller reads; a defect's text is the fixed one, with its error id."""
    shown = status_of(error)
    found: dict[str, Any] = {"error": shown.message or error.reason, "reason": error.reason}
    if error.violations:
        found["fields"] = dict(list(error.violations.items())[:12])
    if error_id := error.metadata.get("error_id"):
        found["error_id"] = error_id
    return found


def headers_of(error: VolaryError) -> dict[str, str]:
    """Return when to come back, and how to prove who one is."""
    found: dict[str, str] = {}
    if error.retry_after_s is not None:
        found["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if code_of(error) == code_pb2.UNAUTHENTICATED:
        found["www-authenticate"] = "Bearer"
    return found
