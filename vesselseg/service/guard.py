"""Access control: request ids, host, origin, token, size and rate limits; a log line and metrics per response."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vesselseg.service.errors import ClientGone, ServiceError, busy, error_response, internal_error
from vesselseg.service.metrics import Metrics
from vesselseg.service.rate import RateLimit
from vesselseg.service.settings import ServiceSettings
from vesselseg.web_pages import SECURITY_HEADERS, is_local_host

UPLOAD_TIMEOUT_S = 60.0  # for the body of a request
CLIENT_GONE = 499  # nginx's status for a closed connection; only in log and metrics
# The page and its files contain no data and cost no work, so they need no token and do not count for the rate limit.
_PUBLIC_PATHS = re.compile(r"/|/static/[\w.]+|/health|/openapi\.json|/favicon\.ico")
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONCURRENT_UPLOADS = 4  # of the largest size: the limit for the bytes of all uploads in progress,
_MIN_UPLOAD_BYTES = 1_000_000_000  # which is at least this
_DRAIN_S = 5.0  # seconds that a refused upload may continue, so that its client can read the reason
_LOG = logging.getLogger("vesselseg.service")


@dataclass
class RequestInfo:
    """A request in progress: the fields of its log line."""

    request_id: str
    method: str
    route: str = "-"  # the path, if it belongs to the service
    model: str = "-"
    size: str = "-"  # width x height x phrases
    status: int = 0
    bytes: int = 0  # of the body received so far
    streams: bool = False  # whether the response is sent in parts, and logged with the last one
    started: float = field(default_factory=time.perf_counter)


class Guard:
    """ASGI middleware around the whole application. It refuses requests before their body is read."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._rate = RateLimit(settings.rate)
        self._token = None if settings.token is None else _hash(settings.token)
        self._uploading = 0  # bytes reserved for uploads in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        info = RequestInfo(client_id if _VALID_ID.fullmatch(client_id) else uuid.uuid4().hex[:16], scope["method"])
        info.route = _route(scope["path"], self._routes)
        scope.setdefault("state", {})["request_info"] = info
        response = _Response(send, info, self._log)
        with self._metrics.running.track_inprogress():
            try:
                await self._serve(scope, headers, receive, response)
            except (ClientGone, ClientDisconnect):
                info.status = CLIENT_GONE
            except Exception:
                _LOG.exception("id=%s failed", info.request_id)
                if not response.started:
                    await _send_error(internal_error(), scope, receive, response)
        if not response.logged:
            self._log(info)

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive, response: _Response) -> None:
        reserved = 0
        try:
            self._check(scope, headers)
            reserved = self._reserve(headers)
        except ServiceError as error:
            await _refuse(error, scope, headers, receive, response, self._settings.max_bytes)
            return
        body = _RequestBody(receive, response.info, self._settings.max_bytes)
        try:
            await self._app(scope, body, response)
        except ServiceError as error:  # raised while the body is read
            if not response.started:
                await _refuse(error, scope, headers, receive, response, self._settings.max_bytes)
        finally:
            self._uploading -= reserved

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises ServiceError for a request that is not allowed."""
        host = headers.get("host", "")
        if self._settings.is_local and not is_local_host(host):
            raise ServiceError(403, "foreign_host", "this service can only be addressed as 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ServiceError(403, "foreign_origin", "pages of other sites may not use this service")
        if _PUBLIC_PATHS.fullmatch(scope["path"]):
            return
        wait = self._rate.wait((scope.get("client") or ("",))[0])
        if wait:
            message = f"more than {self._settings.rate:g} requests per second; try again in {wait} s"
            raise ServiceError(429, "rate_limited", message, retry_after=wait)
        if self._token is not None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_hash(token.strip()), self._token):
                message = "missing or wrong token; send the header Authorization: Bearer TOKEN"
                raise ServiceError(401, "unauthorized", message)

    def _reserve(self, headers: Headers) -> int:
        """Reserve and return the bytes of the body; ServiceError if it is too large or too many uploads are running."""
        largest = self._settings.max_bytes
        length = headers.get("content-length", "")
        expected = int(length) if length.isdecimal() else largest * ("transfer-encoding" in headers)
        if expected > largest:
            raise _too_large(largest)
        if self._uploading and self._uploading + expected > max(_CONCURRENT_UPLOADS * largest, _MIN_UPLOAD_BYTES):
            raise busy("too many uploads at once; try again in a moment")
        self._uploading += expected
        return expected

    def _log(self, info: RequestInfo) -> None:
        seconds = time.perf_counter() - info.started
        self._metrics.requests.labels(info.route, str(info.status)).inc()
        self._metrics.request_seconds.labels(info.route).observe(seconds)
        _LOG.info(
            "id=%s %s %s status=%d model=%s size=%s bytes=%d seconds=%.3f",
            *(info.request_id, info.method, info.route, info.status, info.model, info.size),
            *(info.bytes, seconds),
        )


class _Response:
    """Sends a response with the request's id and SECURITY_HEADERS.

    It is counted and logged before its body, or the last part of it, is sent: a client that has the response can see
    both.
    """

    def __init__(self, send: Send, info: RequestInfo, log: Callable[[RequestInfo], None]) -> None:
        self._send, self._log, self.info = send, log, info
        self.started = self.logged = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.info.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**SECURITY_HEADERS, "X-Request-ID": self.info.request_id}.items():
                headers[name] = value
        elif not self.logged and not (self.info.streams and message.get("more_body")):
            self.logged = True
            self._log(self.info)
        await self._send(message)


class _RequestBody:
    """Receives a request's body; raises ServiceError if it becomes too large or takes too long."""

    def __init__(self, receive: Receive, info: RequestInfo, largest: int) -> None:
        self._receive, self._info, self._largest = receive, info, largest
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:  # only a disconnect can follow, and waiting for it has no time limit
            return await self._receive()
        left = self._info.started + UPLOAD_TIMEOUT_S - time.perf_counter()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise ServiceError(408, "upload_timeout", f"the body took more than {UPLOAD_TIMEOUT_S:.0f} s") from None
        self._info.bytes += len(message.get("body", b""))
        if self._info.bytes > self._largest:
            raise _too_large(self._largest)
        self._complete = not message.get("more_body", False)
        return message


async def _refuse(
    error: ServiceError, scope: Scope, headers: Headers, receive: Receive, response: _Response, largest: int
) -> None:
    """Respond immediately, then receive and discard some of the upload.

    Closing a connection while its client is still sending resets it, and the client never reads the response.
    """
    drained = False

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal drained
        if message["type"] == "http.response.body" and not drained and "expect" not in headers:
            drained = True
            await response({**message, "more_body": True})
            await _drain(receive, 2 * largest)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await response(message)

    await _send_error(error, scope, receive, send, response.info.request_id)


async def _drain(receive: Receive, max_bytes: int) -> None:
    async def discard() -> None:
        discarded, more = 0, True
        while more and discarded <= max_bytes:
            message = await receive()
            discarded += len(message.get("body", b""))
            more = message.get("more_body", False)

    try:
        await asyncio.wait_for(discard(), _DRAIN_S)
    except asyncio.TimeoutError:
        return


async def _send_error(error: ServiceError, scope: Scope, receive: Receive, send: Send, request_id: str = "") -> None:
    response = error_response(error, request_id or scope["state"]["request_info"].request_id)
    await response(scope, receive, send)


def _route(path: str, routes: frozenset[str]) -> str:
    """A path of the service; "-" for any other, because arbitrary text must not enter the log."""
    if path.startswith("/static/"):
        return "/static"
    return path if path in routes else "-"


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _too_large(largest: int) -> ServiceError:
    return ServiceError(413, "too_large", f"the request is larger than {largest / 1e6:g} MB, the limit")
