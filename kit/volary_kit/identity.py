"""Who a caller is: ES256 tokens (RFC 7515, 7518, 7519) and the JWKS file that verifies them.

API keys carry `iss=volary`, service tokens `iss=volary-services` with the key id equal to the
service's name, so that one service cannot speak as another.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from volary_kit.calls import DEFAULT_PROJECT, Principal
from volary_kit.clock import Clock, SystemClock
from volary_kit.errors import Unauthenticated
from volary_kit.watched import WatchedFile

ALGORITHM = "ES256"
KEY_ISSUER = "volary"
SERVICE_ISSUER = "volary-services"
SERVICE_ROLE = "service"
MICROS = 1_000_000
TOKEN_LIFE_S = 3_600
LEEWAY_S = 5  # clocks of two machines
MAX_TOKEN_BYTES = 8_192
MAX_CACHED = 4_096


@dataclass(frozen=True)
class SigningKey:
    """A private ES256 key with its id; printed without the key."""

    kid: str
    private: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.kid!r})"

    @classmethod
    def generate(cls, kid: str) -> SigningKey:
        """Make a new key on P-256."""
        return cls(kid, ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def read(cls, path: Path, kid: str) -> SigningKey:
        """Read a PEM file; raise ValueError that names the file and never its content."""
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"{path} holds no readable PEM private key") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{path} holds no elliptic-curve key")  # noqa: TRY004
        return cls(kid, private)

    def write(self, path: Path) -> None:
        """Write the PEM file readable by its owner alone."""
        pem = self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    def public_jwk(self, issuer: str = SERVICE_ISSUER) -> dict[str, Any]:
        """Return the public half as a JWK; `iss` says which tokens the key may sign."""
        jwk: dict[str, Any] = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return jwk | {"kid": self.kid, "use": "sig", "alg": ALGORITHM, "iss": issuer}


def write_jwks(path: Path, jwks: Iterable[dict[str, Any]]) -> None:
    """Replace the JWKS file atomically, so that a reader never sees half of it."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.write_text(json.dumps({"keys": list(jwks)}, indent=1) + "\n")
    fresh.replace(path)


def mint_api_key(
    key: SigningKey,
    principal: str,
    roles: Iterable[str],
    *,
    project: str = DEFAULT_PROJECT,
    life_s: float,
    clock: Clock,
    key_id: str | None = None,
) -> str:
    """Return a new API key for `principals/<principal>`; it is shown once and not stored."""
    claims = {
        "iss": KEY_ISSUER,
        "sub": f"principals/{principal}",
        "prj": project,
        "roles": sorted(roles),
        "jti": key_id or secrets.token_hex(16),
    }
    return _sign(key, claims, life_s, clock)


def mint_service_token(
    key: SigningKey, *, project: str, on_behalf_of: str | None, clock: Clock
) -> str:
    """Return a token of one hour for `services/<key.kid>`, with the original principal."""
    claims: dict[str, Any] = {
        "iss": SERVICE_ISSUER,
        "sub": f"services/{key.kid}",
        "prj": project,
        "roles": [SERVICE_ROLE],
        "jti": secrets.token_hex(8),
    }
    if on_behalf_of:
        claims["obo"] = on_behalf_of
    return _sign(key, claims, TOKEN_LIFE_S, clock)


def _sign(key: SigningKey, claims: dict[str, Any], life_s: float, clock: Clock) -> str:
    now_s = clock.now_us() // MICROS
    claims = claims | {"iat": now_s, "exp": int(now_s + life_s)}
    return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid})


@dataclass(frozen=True)
class VerifyingKey:
    """A public key and the issuer whose tokens it may verify."""

    issuer: str
    public: Any


class Jwks:
    """The public keys of a file, read again when the file changes.

    The file is looked at no more often than every `watched.RELOAD_S`; a broken or missing file
    keeps the last good keys.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._file = WatchedFile(path, clock, self._take)
        self._keys: dict[str, VerifyingKey] = {}
        self.generation = 0

    def find(self, kid: str) -> VerifyingKey | None:
        """Return the key of an id, None if the file has none."""
        self.refresh()
        return self._keys.get(kid)

    def refresh(self) -> None:
        """Read the file again if it changed since the last look."""
        self._file.refresh()

    def _take(self, text: str) -> None:
        self._keys = parse_jwks(text)
        self.generation += 1


def parse_jwks(text: str) -> dict[str, VerifyingKey]:
    """Return the ES256 keys of a JWKS document by key id; raise ValueError if it is broken."""
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("a JWKS document is an object with a list `keys`")  # noqa: TRY004
    keys: dict[str, VerifyingKey] = {}
    for jwk in document["keys"]:
        try:
            public = ECAlgorithm.from_jwk(jwk)
        except jwt.InvalidKeyError as error:
            raise ValueError(f"key {jwk.get('kid')!r} is no elliptic-curve JWK") from error
        keys[str(jwk["kid"])] = VerifyingKey(str(jwk.get("iss", SERVICE_ISSUER)), public)
    return keys


def never_revoked(_key_id: str) -> bool:
    """Say that no key is revoked."""
    return False


class Verifier:
    """Turn a token into a Principal; remembers tokens that it has verified.

    A verified signature is cached until the token expires or the JWKS file changes: an ES256
    check costs about 100 us, a look-up under 1 us.
    """

    def __init__(
        self,
        jwks: Jwks,
        clock: Clock | None = None,
        is_revoked: Callable[[str], bool] = never_revoked,
    ) -> None:
        self._jwks = jwks
        self._clock = clock or SystemClock()
        self._is_revoked = is_revoked
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, tuple[int, Principal]] = OrderedDict()
        self._generation = -1

    def verify(self, token: str) -> Principal:
        """Return who the token speaks for; raise Unauthenticated with a stable reason."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated("CREDENTIAL_INVALID", "the credential is too long")
        principal = self._cached(token) or self._verify(token)
        if self._is_revoked(principal.key_id):
            raise Unauthenticated("CREDENTIAL_REVOKED", "the credential is revoked")
        return principal

    def _cached(self, token: str) -> Principal | None:
        self._jwks.refresh()
        with self._lock:
            if self._generation != self._jwks.generation:
                self._cache.clear()
                self._generation = self._jwks.generation
            found = self._cache.get(token)
            if found is None or found[0] <= self._clock.now_us() // MICROS:
                return None
            self._cache.move_to_end(token)
            return found[1]

    def _verify(self, token: str) -> Principal:
        claims, kid = self._claims(token)
        now_s = self._clock.now_us() // MICROS
        if int(claims["exp"]) + LEEWAY_S <= now_s:
            raise Unauthenticated("CREDENTIAL_EXPIRED", "the credential has expired")
        if int(claims["iat"]) - LEEWAY_S > now_s:
            raise Unauthenticated("CREDENTIAL_INVALID", "the credential is from the future")
        principal = principal_of(claims, kid)
        with self._lock:
            self._cache[token] = (int(claims["exp"]), principal)
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return principal

    def _claims(self, token: str) -> tuple[dict[str, Any], str]:
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
            key = self._jwks.find(kid)
            if key is None:
                raise Unauthenticated("CREDENTIAL_INVALID", "the credential's key is not known")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[ALGORITHM],
                issuer=key.issuer,
                # time is checked against the clock that was handed in
                options={
                    "require": ["iss", "sub", "exp", "iat"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": False,
                },
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(
                "CREDENTIAL_INVALID", "the credential is not valid here"
            ) from error
        return claims, kid


def principal_of(claims: dict[str, Any], kid: str) -> Principal:
    """Return the principal of verified claims; raise Unauthenticated if they contradict."""
    subject, roles = claims["sub"], claims.get("roles", [])
    is_list = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
    if claims["iss"] == SERVICE_ISSUER:
        belongs = subject == f"services/{kid}" and roles == [SERVICE_ROLE]
    else:
        belongs = str(subject).startswith("principals/") and SERVICE_ROLE not in roles
    if not is_list or not belongs:
        raise Unauthenticated("CREDENTIAL_INVALID", "the credential's claims do not fit its key")
    return Principal(
        subject=str(subject),
        project=str(claims.get("prj") or DEFAULT_PROJECT),
        roles=frozenset(roles),
        on_behalf_of=claims.get("obo"),
        key_id=str(claims.get("jti", "")),
    )


class TokenSource:
    """Service tokens of this process, one per (project, original principal), renewed in time."""

    def __init__(self, key: SigningKey, clock: Clock) -> None:
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[tuple[str, str | None], tuple[int, str]] = OrderedDict()

    def token(self, project: str, on_behalf_of: str | None) -> str:
        """Return a token with at least half of its life left."""
        now_s = self._clock.now_us() // MICROS
        pair = (project, on_behalf_of)
        with self._lock:
            renew_s, token = self._tokens.get(pair, (0, ""))
            if renew_s <= now_s:
                token = mint_service_token(
                    self._key, project=project, on_behalf_of=on_behalf_of, clock=self._clock
                )
                self._tokens[pair] = (now_s + TOKEN_LIFE_S // 2, token)
                while len(self._tokens) > MAX_CACHED:
                    self._tokens.popitem(last=False)
            return token
