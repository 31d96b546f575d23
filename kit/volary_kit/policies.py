"""The policy row of each RPC, as the contract's `methods.json` has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Self

import volary_contract

MIB = 1 << 20
DEFAULT_MAX_REQUEST_BYTES = 4 * MIB
ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a caller may expect of one RPC and what the RPC expects of a caller."""

    method: str
    allow: frozenset[str]
    default_deadline_s: float
    max_deadline_s: float
    unbounded: bool
    idempotency: str
    max_request_bytes: int
    client_streaming: bool
    server_streaming: bool

    @property
    def is_anonymous(self) -> bool:
        """True when the call needs no credential."""
        return ANONYMOUS in self.allow

    @property
    def is_unary(self) -> bool:
        """True when neither side streams."""
        return not (self.client_streaming or self.server_streaming)

    @classmethod
    def from_row(cls, method: str, row: volary_contract.MethodRow) -> Self:
        """Read one row of `methods.json`; milliseconds become seconds."""
        return cls(
            method=method,
            allow=frozenset(row["allow"]),
            default_deadline_s=row["default_deadline_ms"] / 1_000,
            max_deadline_s=row["max_deadline_ms"] / 1_000,
            unbounded=row["unbounded"],
            idempotency=row["idempotency"],
            max_request_bytes=row["max_request_bytes"] or DEFAULT_MAX_REQUEST_BYTES,
            client_streaming=row["client_streaming"],
            server_streaming=row["server_streaming"],
        )


@cache
def policies() -> dict[str, Policy]:
    """Return the row of each RPC of the contract, keyed by `/package.Service/Method`."""
    return {name: Policy.from_row(name, row) for name, row in volary_contract.methods().items()}
