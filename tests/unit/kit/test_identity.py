"""Tokens: who they speak for, and which ones speak for nobody."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from volary_kit.clock import Clock
from volary_kit.errors import Unauthenticated
from volary_kit.identity import (
    KEY_ISSUER,
    LEEWAY_S,
    SERVICE_ISSUER,
    TOKEN_LIFE_S,
    Jwks,
    SigningKey,
    TokenSource,
    Verifier,
    mint_api_key,
    mint_service_token,
    parse_jwks,
    write_jwks,
)
from volary_kit.revocations import Revocations, write_revocations
from volary_kit.testing import ManualClock
from volary_kit.watched import RELOAD_S

GATEWAY = SigningKey.generate("gateway-1")
REGISTRY = SigningKey.generate("registry")
MONITOR = SigningKey.generate("monitor")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    keys = [GATEWAY.public_jwk(KEY_ISSUER), REGISTRY.public_jwk(), MONITOR.public_jwk()]
    write_jwks(path, keys)
    return path


@pytest.fixture
def verifier(jwks_file: Path, clock: ManualClock) -> Verifier:
    return Verifier(Jwks(jwks_file, clock), clock)


def api_key(clock: Clock, key: SigningKey = GATEWAY, life_s: float = 60) -> str:
    return mint_api_key(
        key, "ann", ["viewer", "operator"], project="birds", life_s=life_s, clock=clock, key_id="k7"
    )


def refused(verifier: Verifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token)
    return caught.value.reason


def forged(claims: dict[str, object], key: SigningKey, kid: str, clock: Clock) -> str:
    now_s = clock.now_us() // 1_000_000
    claims = {"iat": now_s, "exp": now_s + 60} | claims
    return jwt.encode(claims, key.private, "ES256", headers={"kid": kid})


def test_an_api_key_names_its_principal(verifier: Verifier, clock: ManualClock) -> None:
    principal = verifier.verify(api_key(clock))
    assert principal.subject == "principals/ann"
    assert principal.project == "birds"
    assert principal.roles == {"viewer", "operator"}
    assert principal.key_id == "k7"


def test_a_service_token_carries_the_original_principal(
    verifier: Verifier, clock: ManualClock
) -> None:
    token = mint_service_token(
        REGISTRY, project="birds", on_behalf_of="principals/ann", clock=clock
    )
    principal = verifier.verify(token)
    assert principal.subject == "services/registry"
    assert principal.roles == {"service"}
    assert principal.on_behalf_of == "principals/ann"


def test_a_key_expires(verifier: Verifier, clock: ManualClock) -> None:
    token = api_key(clock, life_s=60)
    clock.advance(60 + LEEWAY_S - 1)
    verifier.verify(token)
    clock.advance(2)
    assert refused(verifier, token) == "CREDENTIAL_EXPIRED"


def test_a_key_from_the_future_is_refused(verifier: Verifier, clock: ManualClock) -> None:
    later = ManualClock(clock.now_us() + 3_600_000_000)
    assert refused(verifier, api_key(later)) == "CREDENTIAL_INVALID"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é.é.é", "." * 50, "x" * 10_000])
def test_garbage_is_refused(verifier: Verifier, token: str) -> None:
    assert refused(verifier, token) == "CREDENTIAL_INVALID"


def test_no_algorithm_is_refused(verifier: Verifier, clock: ManualClock) -> None:
    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    body = api_key(clock).split(".")[1]
    token = f"{part({'alg': 'none', 'kid': GATEWAY.kid})}.{body}."
    assert refused(verifier, token) == "CREDENTIAL_INVALID"


def test_another_algorithm_is_refused(verifier: Verifier, clock: ManualClock) -> None:
    token = jwt.encode(
        {"iss": KEY_ISSUER, "sub": "principals/ann", "exp": 2**40, "iat": 0},
        "0" * 64,
        "HS256",
        headers={"kid": GATEWAY.kid},
    )
    assert refused(verifier, token) == "CREDENTIAL_INVALID"


def test_an_unknown_key_is_refused(verifier: Verifier, clock: ManualClock) -> None:
    stranger = SigningKey.generate("stranger")
    assert refused(verifier, api_key(clock, stranger)) == "CREDENTIAL_INVALID"
    impostor = SigningKey.generate(GATEWAY.kid)
    assert refused(verifier, api_key(clock, impostor)) == "CREDENTIAL_INVALID"


def test_a_service_cannot_speak_as_another(verifier: Verifier, clock: ManualClock) -> None:
    claims = {"iss": SERVICE_ISSUER, "sub": "services/registry", "roles": ["service"]}
    token = forged(claims, MONITOR, MONITOR.kid, clock)
    assert refused(verifier, token) == "CREDENTIAL_INVALID"


def test_a_service_key_cannot_issue_api_keys(verifier: Verifier, clock: ManualClock) -> None:
    claims = {"iss": KEY_ISSUER, "sub": "principals/ann", "roles": ["admin"]}
    token = forged(claims, MONITOR, MONITOR.kid, clock)
    assert refused(verifier, token) == "CREDENTIAL_INVALID"


def test_an_issuing_key_cannot_make_services(verifier: Verifier, clock: ManualClock) -> None:
    claims = {"iss": KEY_ISSUER, "sub": "principals/ann", "roles": ["service"]}
    token = forged(claims, GATEWAY, GATEWAY.kid, clock)
    assert refused(verifier, token) == "CREDENTIAL_INVALID"


def test_a_changed_file_is_read_again(
    verifier: Verifier, clock: ManualClock, jwks_file: Path
) -> None:
    token = api_key(clock)
    verifier.verify(token)
    write_jwks(jwks_file, [REGISTRY.public_jwk()])
    clock.advance(RELOAD_S)
    assert refused(verifier, token) == "CREDENTIAL_INVALID"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": 7}', '{"keys": [{"kty": "oct"}]}'])
def test_a_broken_file_keeps_the_last_good_keys(
    verifier: Verifier, clock: ManualClock, jwks_file: Path, text: str
) -> None:
    token = api_key(clock)
    verifier.verify(token)
    jwks_file.write_text(text)
    clock.advance(RELOAD_S)
    verifier.verify(token)


def test_a_revoked_key_is_refused_at_once(jwks_file: Path, clock: ManualClock) -> None:
    revoked: set[str] = set()
    verifier = Verifier(Jwks(jwks_file, clock), clock, revoked.__contains__)
    token = api_key(clock)
    verifier.verify(token)
    revoked.add("k7")
    assert refused(verifier, token) == "CREDENTIAL_REVOKED"


def test_list_of_revoked_keys_is_followed(
    jwks_file: Path, clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "revoked.json"
    verifier = Verifier(Jwks(jwks_file, clock), clock, Revocations(path, clock))
    token = api_key(clock)
    verifier.verify(token)  # no list, nothing revoked
    write_revocations(path, ["k7", "k8"])
    clock.advance(RELOAD_S)
    assert refused(verifier, token) == "CREDENTIAL_REVOKED"
    path.write_text('{"revoked": [7]}')
    clock.advance(RELOAD_S)
    assert refused(verifier, token) == "CREDENTIAL_REVOKED"  # a broken list frees nobody


def test_tokens_are_renewed_before_they_expire(verifier: Verifier, clock: ManualClock) -> None:
    tokens = TokenSource(REGISTRY, clock)
    first = tokens.token("birds", None)
    assert tokens.token("birds", None) == first
    assert tokens.token("birds", "principals/ann") != first
    clock.advance(TOKEN_LIFE_S / 2)
    second = tokens.token("birds", None)
    assert second != first
    clock.advance(TOKEN_LIFE_S / 2 - 1)
    verifier.verify(second)


def test_a_private_key_file_is_its_owners_alone(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "registry.pem"
    REGISTRY.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = SigningKey.read(path, "registry")
    assert again.public_jwk() == REGISTRY.public_jwk()
    assert "PRIVATE" not in repr(again)


def test_a_broken_key_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.pem"
    path.write_text("SECRET")
    with pytest.raises(ValueError, match=r"broken\.pem") as caught:
        SigningKey.read(path, "registry")
    assert "SECRET" not in str(caught.value)


def test_only_elliptic_curves_are_keys() -> None:
    public = rsa.generate_private_key(65_537, 2_048).public_key()
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True) | {"kid": "rsa"}
    with pytest.raises(ValueError, match="rsa"):
        parse_jwks(json.dumps({"keys": [jwk]}))
