"""Who calls: the credential of the metadata becomes `call.principal`."""

from __future__ import annotations

from typing import Protocol

from volary_kit.calls import Call, Principal
from volary_kit.errors import Unauthenticated
from volary_kit.rules.chain import Rule

API_KEY_HEADER = "x-api-key"
BEARER_HEADER = "authorization"
BEARER = "bearer "


class TokenVerifier(Protocol):
    """Turn a token into a principal; raise Unauthenticated."""

    def verify(self, token: str) -> Principal:
        """Return who the token speaks for."""
        ...


class Authentication(Rule):
    """Refuse a call without a valid credential, unless its row allows anonymous callers."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    def before(self, call: Call) -> None:
        if call.policy.is_anonymous:
            return
        call.principal = self._verifier.verify(credential_of(call))


def credential_of(call: Call) -> str:
    """Return the token of `x-api-key` or `authorization: Bearer`; raise Unauthenticated."""
    token = call.text(API_KEY_HEADER)
    if not token:
        bearer = call.text(BEARER_HEADER)
        if bearer[: len(BEARER)].lower() == BEARER:
            token = bearer[len(BEARER) :].strip()
    if not token:
        raise Unauthenticated(
            "CREDENTIAL_MISSING",
            f"send an API key in {API_KEY_HEADER}, or a token in {BEARER_HEADER}: Bearer",
        )
    return token
