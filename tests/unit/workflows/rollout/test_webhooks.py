"""Web hooks: only where the operator allows, never to a private address by a public name."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from volary_kit.errors import FailedPrecondition, Unavailable
from volary_workflows.rollout.tasks import Notice
from volary_workflows.rollout.webhooks import Webhooks


def notice(url: str) -> Notice:
    return Notice(url, "an-id", "r", "default", "delays", 2, 1, "PROMOTED", "", 1.0)


@contextmanager
def listening(status: int = 200, headers: dict[str, str] | None = None):
    """Run an HTTP server on loopback; yields its origin and what was posted to it."""
    posted: list[tuple[str, str | None, dict]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            posted.append((self.path, self.headers["idempotency-key"], json.loads(body)))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_change_of_state_is_posted_once_allowed():
    with listening() as (origin, posted):
        await Webhooks([origin]).post(notice(f"{origin}/hook?room=7"))
    path, key, body = posted[0]
    assert (path, key) == ("/hook?room=7", "an-id")
    assert (body["model"], body["candidate"], body["state"]) == ("delays", 2, "PROMOTED")
    assert "url" not in body


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
        await hooks.post(notice(url))
    assert refused.value.reason == "WEBHOOK_NOT_ALLOWED"


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.5", "::1", "0.0.0.0"])
async def test_an_allowed_name_that_leads_to_a_private_address_is_refused(address):
    hooks = Webhooks(["http://hooks.test"], lambda host, port: address)
    with pytest.raises(FailedPrecondition) as refused:
        await hooks.post(notice("http://hooks.test/x"))
    assert refused.value.reason == "WEBHOOK_NOT_PUBLIC"


async def test_a_redirect_is_not_followed():
    with (
        listening() as (other, posted),
        listening(302, {"location": f"{other}/x"}) as (origin, _),
        pytest.raises(Unavailable) as refused,
    ):
        await Webhooks([origin, other]).post(notice(f"{origin}/x"))
    assert (refused.value.reason, posted) == ("WEBHOOK_REFUSED", [])


async def test_nobody_there_is_unavailable_to_be_tried_again():
    with listening() as (origin, _):
        pass
    with pytest.raises(Unavailable):
        await Webhooks([origin]).post(notice(f"{origin}/x"))
