"""The one error tree of Volary; it knows no gRPC, so a domain module may raise it.

    VolaryError
    ├── InvalidArgument        the caller sent something that is wrong whatever the state
    │   └── OutOfRange         a position past the end
    ├── NotFound
    ├── AlreadyExists
    ├── FailedPrecondition     right request, wrong state; do not retry before the state changes
    ├── Aborted                lost a race; read again and retry
    ├── ResourceExhausted      a quota, a queue or a limit
    ├── Unavailable            try again, here or elsewhere
    ├── DeadlineExceeded
    ├── Cancelled
    ├── Unauthenticated        no valid credential
    ├── PermissionDenied       a valid credential without the role
    ├── Unimplemented
    ├── DataLoss
    └── Internal               a defect of ours; its text never reaches a caller

`volary_kit.statuses` holds the table to `google.rpc.Status` and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self


class VolaryError(Exception):
    """Fail a call: a stable reason, a text for people, metadata for programs.

    `reason` is UPPER_SNAKE_CASE and stable; `metadata` names what the text talks about;
    `field` is the path in the request that is wrong, `retry_after_s` when to come back.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        field: str | None = None,
        violations: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = dict(violations or {})
        if field is not None:
            self.violations.setdefault(field, message)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def with_metadata(self, **more: str) -> Self:
        """Add metadata and return the same error, for `raise error.with_metadata(model=m)`."""
        self.metadata.update(more)
        return self


class InvalidArgument(VolaryError):
    """The caller sent something that is wrong whatever the state."""


class OutOfRange(InvalidArgument):
    """The caller asked for a position past the end."""


class NotFound(VolaryError):
    """The thing does not exist, or belongs to another project."""


class AlreadyExists(VolaryError):
    """The thing that the caller creates is there."""


class FailedPrecondition(VolaryError):
    """The request is right and the state is wrong for it."""


class Aborted(VolaryError):
    """The caller lost a race; read again and retry the whole."""


class ResourceExhausted(VolaryError):
    """A quota, a queue or a limit is full."""


class Unavailable(VolaryError):
    """Try again, here or elsewhere."""


class DeadlineExceeded(VolaryError):
    """The time given for the call ran out."""


class Cancelled(VolaryError):
    """The caller went away."""


class Unauthenticated(VolaryError):
    """No valid credential came with the call."""


class PermissionDenied(VolaryError):
    """The credential is valid and lacks the role."""


class Unimplemented(VolaryError):
    """The contract has it and this process does not do it."""


class DataLoss(VolaryError):
    """What was stored is damaged."""


class Internal(VolaryError):
    """A defect of ours; the text stays in the log, the caller gets an error id."""
