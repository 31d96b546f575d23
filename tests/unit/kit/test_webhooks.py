"""Web hooks: only where the operator allows, never to a private address by a public name."""

from __future__ import annotations

import pytest
from volary_kit.errors import FailedPrecondition, Unavailable
from volary_kit.testing import ManualClock
from volary_kit.webhooks import TOLERATED_S, Webhooks, is_signed

from tests.unit.receiver import receiving

TOLD = {"model": "delays", "state": "PROMOTED"}


async def test_what_is_told_is_posted_under_its_key_where_it_is_allowed():
    with receiving() as receiver:
        await Webhooks([receiver.origin]).post(f"{receiver.origin}/hook?room=7", TOLD, "an-id")
    (post,) = receiver.posted
    assert (post.path, post.key, post.told) == ("/hook?room=7", "an-id", TOLD)
    assert "volary-signature" not in post.headers


async def test_what_is_signed_is_known_by_its_secret_for_a_while_and_in_no_other_form():
    clock = ManualClock()
    with receiving() as receiver:
        await Webhooks([receiver.origin], "secret", clock=clock).post(
            f"{receiver.origin}/x", TOLD, "an-id"
        )
    (post,) = receiver.posted
    signature, now_s = post.headers["volary-signature"], clock.now_us() / 1e6
    assert is_signed("secret", signature, post.body, now_s)
    assert not is_signed("other", signature, post.body, now_s)
    assert not is_signed("secret", signature, post.body + b" ", now_s)
    assert not is_signed("secret", signature, post.body, now_s + TOLERATED_S + 2)
    assert not is_signed("secret", signature.replace("t=", "t=1"), post.body, now_s)
    assert not is_signed("secret", "nonsense", post.body, now_s)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.test.evil.example/x",
        "http://hooks.test/x",
        "https://hooks.test:8443/x",
        "ftp://hooks.test/x",
        "https://[",
        "nonsense",
    ],
)
async def test_another_origin_is_refused(url):
    hooks = Webhooks(["https://hooks.test"])
    assert hooks.allows("https://hooks.test/any/path")
    assert not hooks.allows(url)
    with pytest.raises(FailedPrecondition) as refused:
        await hooks.post(url, TOLD, "an-id")
    assert refused.value.reason == "WEBHOOK_NOT_ALLOWED"


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.5", "::1", "0.0.0.0"])
async def test_an_allowed_name_that_leads_to_a_private_address_is_refused(address):
    hooks = Webhooks(["http://hooks.test"], resolve=lambda host, port: address)
    with pytest.raises(FailedPrecondition) as refused:
        await hooks.post("http://hooks.test/x", TOLD, "an-id")
    assert refused.value.reason == "WEBHOOK_NOT_PUBLIC"


async def test_a_redirect_is_not_followed():
    with receiving() as other, receiving(302, {"location": f"{other.origin}/x"}) as receiver:
        hooks = Webhooks([receiver.origin, other.origin])
        with pytest.raises(Unavailable) as refused:
            await hooks.post(f"{receiver.origin}/x", TOLD, "an-id")
    assert (refused.value.reason, other.posted) == ("WEBHOOK_REFUSED", [])


async def test_nobody_there_is_unavailable_to_be_tried_again():
    with receiving() as receiver:
        pass
    with pytest.raises(Unavailable):
        await Webhooks([receiver.origin]).post(f"{receiver.origin}/x", TOLD, "an-id")
