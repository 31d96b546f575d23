"""The HTTP application: bounded bodies in, one gRPC call each, JSON out, errors too."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import Counter
from volary_kit.errors import (
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
    VolaryError,
)
from volary_kit.statuses import new_error_id

from volary_inference.rest import documents, refusals, replies, requests
from volary_inference.rest.routes import MODEL, ROUTES, VERSION, Route
from volary_inference.rest.upstream import Upstream

log = logging.getLogger(__name__)
PREFIX = "/v2"
ALIVE = "/livez"  # of this process alone: the protocol's own probes ask the server behind it
HEADER_LENGTH = "Inference-Header-Content-Length"
JSON, BINARY = "application/json", "application/octet-stream"
BESIDE_BYTES = 64 << 10  # a body above this is translated in a thread
COMPRESSED_BYTES = 1 << 10  # below it compression costs more than it saves
ENCODINGS = web.ContentCoding.gzip, web.ContentCoding.deflate
RPC = "volary.rpc"  # of the call that a request has become, for the counter


@dataclass(frozen=True)
class Limits:
    """What a body may have, uncompressed, and how much of that may be JSON."""

    body_bytes: int
    json_bytes: int


def application(upstream: Upstream, limits: Limits, replies_seen: Counter) -> web.Application:
    """Return the application of one upstream."""
    app = web.Application(client_max_size=limits.body_bytes, middlewares=[_answering(replies_seen)])
    infer = _Inference(upstream, limits)
    for path in (MODEL, VERSION):
        app.router.add_post(f"{PREFIX}{path}/infer", infer)
    for route in ROUTES:
        handler = _Described(upstream, limits, route)
        app.router.add_route(route.verb, PREFIX + route.path, handler)
        if not route.path:
            app.router.add_get(f"{PREFIX}/", handler)
    app.router.add_get(ALIVE, _alive)
    return app


async def _alive(_: web.Request) -> web.Response:
    return _json({"alive": True})


class _Described:
    """A call whose request and reply are small."""

    def __init__(self, upstream: Upstream, limits: Limits, route: Route) -> None:
        self._upstream, self._limits, self._route = upstream, limits, route

    async def __call__(self, request: web.Request) -> web.Response:
        request[RPC] = self._route.rpc
        if "SharedMemory" in self._route.rpc and request.method == "POST":
            _require_local(request)
        body = await _read(request)
        _require_json_size(len(body), self._limits)
        asked = self._route.ask(request.match_info, documents.read(body))
        reply = await self._upstream.call(self._route.rpc, asked, request.headers.items())
        document, status = self._route.tell(reply)
        return _json(document, status)


class _Inference:
    """ModelInfer, whose tensors may be JSON or bytes."""

    def __init__(self, upstream: Upstream, limits: Limits) -> None:
        self._upstream, self._limits = upstream, limits

    async def __call__(self, request: web.Request) -> web.Response:
        request[RPC] = "ModelInfer"
        body = await _read(request)
        json_bytes = _json_bytes(request, len(body))
        _require_json_size(json_bytes, self._limits)
        names = request.match_info
        model, version = names["model"], names.get("version", "")
        if len(body) > BESIDE_BYTES:
            asked = await asyncio.to_thread(requests.asked, model, version, body, json_bytes)
        else:
            asked = requests.asked(model, version, body, json_bytes)
        if asked.uses_shared_memory:
            _require_local(request)
        reply = await self._upstream.call(
            "ModelInfer", asked.message, request.headers.items(), asked.timeout_s
        )
        if reply.ByteSize() > BESIDE_BYTES:
            written = await asyncio.to_thread(replies.body_of, reply, asked.wanted)
        else:
            written = replies.body_of(reply, asked.wanted)
        return _tensors(request, written)


def _tensors(request: web.Request, written: replies.Body) -> web.Response:
    response = web.Response(
        body=written.data,
        content_type=JSON if written.json_bytes is None else BINARY,
        zlib_executor_size=BESIDE_BYTES,
    )
    if written.json_bytes is not None:
        response.headers[HEADER_LENGTH] = str(written.json_bytes)
    wanted = request.headers.get("Accept-Encoding", "").lower().replace(" ", "").split(",")
    coding = next((each for each in ENCODINGS if each.value in wanted), None)
    if coding is not None and len(written.data) >= COMPRESSED_BYTES:
        response.enable_compression(coding)
    return response


async def _read(request: web.Request) -> bytes:
    """Return the body, uncompressed; raise the error of one that is too long or broken."""
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if coding not in ("identity", *(each.value for each in ENCODINGS)):
        raise Unimplemented("ENCODING_UNSUPPORTED", "a body may be plain, gzip or deflate")
    # what says so itself is refused before any of it is read
    if (request.content_length or 0) > request.client_max_size:
        raise _body_too_large(request)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise _body_too_large(request) from error
    except web.RequestPayloadError as error:
        raise InvalidArgument("BODY_INVALID", "the body is not what its headers say") from error


def _body_too_large(request: web.Request) -> ResourceExhausted:
    return ResourceExhausted(
        "BODY_TOO_LARGE", f"a body has at most {request.client_max_size} bytes"
    )


def _json_bytes(request: web.Request, size: int) -> int:
    """Return how much of a body is JSON."""
    given = request.headers.get(HEADER_LENGTH)
    if given is None:
        return size
    if not given.isascii() or not given.isdecimal() or len(given) > len(str(1 << 63)):
        raise _bad_length(f"{HEADER_LENGTH} is a number of bytes")
    if int(given) > size:
        raise _bad_length(f"{HEADER_LENGTH} is {int(given)}, the body has {size} bytes")
    if int(given) == 0:
        raise Unimplemented(
            "RAW_REQUEST_UNSUPPORTED", "a request begins with JSON that names its tensors"
        )
    return int(given)


def _bad_length(text: str) -> InvalidArgument:
    return InvalidArgument("HEADER_LENGTH_INVALID", text, field=HEADER_LENGTH)


def _require_json_size(size: int, limits: Limits) -> None:
    if size > limits.json_bytes:
        text = f"JSON has at most {limits.json_bytes} bytes: send tensors as binary data"
        raise ResourceExhausted("JSON_TOO_LARGE", text)


def _require_local(request: web.Request) -> None:
    """Raise PermissionDenied for another machine: to the server behind, this process is near."""
    try:
        is_near = ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        is_near = False
    if not is_near or "x-forwarded-for" in request.headers:
        raise PermissionDenied("NOT_LOCAL", "shared memory is for callers on this machine")


def _answering(seen: Counter) -> Middleware:
    """Return the middleware that answers every error as JSON and counts every reply."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except VolaryError as error:
            response = _refusal(error)
        except web.HTTPException as error:
            response = _of_router(request, error)
        except Exception:
            error_id = new_error_id()
            log.exception("a REST call failed: error id %s", error_id)
            response = _refusal(Internal("DEFECT", "", {"error_id": error_id}))
        if request.content.exception() is not None:
            response.force_close()  # nobody knows where the next request begins
        seen.labels(request.get(RPC, "none"), str(response.status)).inc()
        return response

    return answer


def _of_router(request: web.Request, error: web.HTTPException) -> web.Response:
    if error.status == web.HTTPNotFound.status_code:
        return _refusal(NotFound("ROUTE_UNKNOWN", "the protocol has no such path"))
    text = f"{request.method} is not for this path" if error.status == 405 else error.reason
    allowed = error.headers.get("Allow")
    headers = {} if allowed is None else {"allow": allowed}
    return _json({"error": text, "reason": "METHOD_UNKNOWN"}, error.status, headers)


def _refusal(error: VolaryError) -> web.Response:
    headers = refusals.headers_of(error)
    return _json(refusals.document_of(error), refusals.http_status(error), headers)


def _json(
    document: object, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=documents.written(document), status=status, content_type=JSON, headers=headers
    )
