"""A real HTTP receiver on loopback, which keeps what is posted to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Post:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]

    @property
    def told(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Receiver:
    """What came, and what is answered; while it is `held` nobody is answered."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    origin: str = ""
    posted: list[Post] = field(default_factory=list)
    held: threading.Event | None = None


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # as many may call at once: beyond it a connection waits for seconds
    daemon_threads = True


@contextmanager
def receiving(status: int = 200, headers: dict[str, str] | None = None) -> Iterator[Receiver]:
    """Run the receiver for a block."""
    found = Receiver(status, headers or {})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            names = {name.lower(): value for name, value in self.headers.items()}
            found.posted.append(Post(self.path, names, body))
            held = found.held
            if held is not None:
                held.wait(60)
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.origin = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
