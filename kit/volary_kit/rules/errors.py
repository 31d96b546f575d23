"""What leaves when a call fails: a status of the table, never exception text."""

from __future__ import annotations

import asyncio
import logging

from google.rpc import code_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from volary_kit.calls import Call
from volary_kit.errors import Cancelled, Internal, VolaryError
from volary_kit.rules.chain import Outcome, Rule
from volary_kit.rules.deadline import expired
from volary_kit.statuses import code_of, new_error_id, status_of, unpacked

log = logging.getLogger(__name__)
_OK = Status(code=code_pb2.OK)


def failure_of(call: Call, error: BaseException) -> VolaryError:
    """Return the error that a failed handler stands for; a defect gets an error id."""
    if isinstance(error, VolaryError) and code_of(error) != code_pb2.INTERNAL:
        return error
    if isinstance(error, TimeoutError) and call.remaining_s() <= 0:
        return expired(call)
    if isinstance(error, asyncio.CancelledError):
        return Cancelled("CANCELLED", "the caller went away")
    reason = error.reason if isinstance(error, VolaryError) else "INTERNAL"
    failure = Internal(reason, "a defect", {"error_id": new_error_id()})
    failure.__cause__ = error
    return failure


def outcome_of(call: Call, error: BaseException | None) -> Outcome:
    """Return the outcome of a call: OK without an error, else the status of its failure."""
    elapsed_s = call.clock.monotonic_s() - call.started_s
    if error is None:
        return Outcome(_OK, elapsed_s)
    failure = failure_of(call, error)
    return Outcome(status_of(failure), elapsed_s, failure.__cause__ or failure)


class ErrorLog(Rule):
    """Write each defect to the log with its error id and its traceback."""

    def after(self, call: Call, outcome: Outcome) -> None:
        if outcome.status.code not in (code_pb2.INTERNAL, code_pb2.UNKNOWN, code_pb2.DATA_LOSS):
            return
        log.error(
            "%s failed, error id %s",
            call.method,
            error_id_of(outcome.status),
            exc_info=outcome.error,
            extra={"method": call.method, "trace_id": call.trace_id},
        )


def error_id_of(status: Status) -> str:
    """Return the error id that the caller was given, empty if there is none."""
    found = [info for detail in status.details if (info := unpacked(detail, ErrorInfo))]
    return found[0].metadata.get("error_id", "") if found else ""
