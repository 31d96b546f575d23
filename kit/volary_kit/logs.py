"""One JSON line a record on standard error, with the trace that it belongs to."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from volary_kit import telemetry
from volary_kit.calls import find_call

# what a LogRecord carries by itself; the rest came by `extra=`
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
NOISY = ("alembic", "grpc", "temporalio.activity")


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object: time, level, logger, text, service, trace id, extras."""

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._identity = {"service": service, "instance": instance}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        row: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._identity,
            **_trace(),
        }
        row |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str, ensure_ascii=False)


def configure(service: str, instance: str, level: str, output: TextIO | None = None) -> None:
    """Send every log record of the process to `output`, standard error unless given."""
    handler = logging.StreamHandler(output or sys.stderr)
    handler.setFormatter(JsonFormatter(service, instance))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _trace() -> dict[str, str]:
    call = find_call()
    trace_id = telemetry.trace_id() or ("" if call is None else call.trace_id)
    row = {"trace_id": trace_id} if trace_id else {}
    if call is not None and call.method:
        row["method"] = call.method
    return row
