"""Before a request: its id, who may ask, how much and how often. Before its answer: a line in the log and a count."""

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

from vesselseg.service.errors import ClientGone, ServiceError, busy, error_response
from vesselseg.service.metrics import Metrics
from vesselseg.service.rate import RateLimit
from vesselseg.service.settings import ServiceSettings
from vesselseg.web_pages import SECURITY_HEADERS, is_local_host

UPLOAD_S = 60.0  # seconds that a request's body may take
CLIENT_GONE = 499  # nginx's number for it; no client ever sees it
# the page and what it loads: holds no data and costs no work, so it asks for no token and does not count as a request
_OPEN = re.compile(r"/|/static/[\w.]+|/health|/openapi\.json|/favicon\.ico")
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UPLOADS = 4  # times the largest request: what may be under way at once, and at least _LEAST_UPLOADS
_LEAST_UPLOADS = 1_000_000_000  # bytes
_DRAIN_S = 5.0  # seconds that a refused upload may go on, so that its client reads why
_LOG = logging.getLogger("vesselseg.service")


@dataclass
class Running:
    """One request on its way: what its line in the log will say. route: the path if it is one of the service's."""

    request_id: str
    method: str
    route: str = "-"
    model: str = "-"
    size: str = "-"
    status: int = 0
    bytes: int = 0
    started: float = field(default_factory=time.perf_counter)


class Guard:
    """ASGI middleware around the whole application. Everything it refuses is refused before the body is read."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._rate = RateLimit(settings.rate)
        self._token = None if settings.token is None else _hash(settings.token)
        self._uploading = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        running = Running(wanted if _SANE_ID.fullmatch(wanted) else uuid.uuid4().hex[:16], scope["method"])
        running.route = _route(scope["path"], self._routes)
        scope.setdefault("state", {})["running"] = running
        answer = _Answer(send, running, self._note)
        with self._metrics.running.track_inprogress():
            try:
                await self._serve(scope, headers, receive, answer)
            except (ClientGone, ClientDisconnect):
                running.status = CLIENT_GONE
            except Exception:
                _LOG.exception("id=%s failed", running.request_id)
                if not answer.started:
                    await _send_error(ServiceError(500, "internal", _INTERNAL), scope, receive, answer)
        if not answer.noted:
            self._note(running)

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer) -> None:
        reserved = 0
        try:
            self._check(scope, headers)
            reserved = self._reserve(headers)
        except ServiceError as error:
            await _refuse(error, scope, headers, receive, answer, self._settings.max_bytes)
            return
        body = _Body(receive, answer.running, self._settings.max_bytes)
        try:
            await self._app(scope, body, answer)
        except ServiceError as error:  # of the body, raised while it is read
            if not answer.started:
                await _refuse(error, scope, headers, receive, answer, self._settings.max_bytes)
        finally:
            self._uploading -= reserved

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise ServiceError where the request may not be made at all."""
        host = headers.get("host", "")
        if self._settings.is_local and not is_local_host(host):
            raise ServiceError(403, "foreign_host", "this service answers to 127.0.0.1 and localhost only")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ServiceError(403, "foreign_origin", "pages of other sites may not use this service")
        if _OPEN.fullmatch(scope["path"]):
            return
        wait = self._rate.wait((scope.get("client") or ("",))[0])
        if wait:
            message = f"more than {self._settings.rate:g} requests per second; try again in {wait} s"
            raise ServiceError(429, "rate_limited", message, retry_after=wait)
        if self._token is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(_hash(given.strip()), self._token):
                message = "no token, or a wrong one; send the header Authorization: Bearer TOKEN"
                raise ServiceError(401, "unauthorized", message)

    def _reserve(self, headers: Headers) -> int:
        """Bytes set aside for the body; ServiceError where it is too large, or too much is under way."""
        largest = self._settings.max_bytes
        length = headers.get("content-length", "")
        expected = int(length) if length.isdecimal() else largest * ("transfer-encoding" in headers)
        if expected > largest:
            raise _too_large(largest)
        if self._uploading and self._uploading + expected > max(_UPLOADS * largest, _LEAST_UPLOADS):
            raise busy("too many uploads at once; try again in a moment")
        self._uploading += expected
        return expected

    def _note(self, running: Running) -> None:
        seconds = time.perf_counter() - running.started
        self._metrics.requests.labels(running.route, str(running.status)).inc()
        self._metrics.request_seconds.labels(running.route).observe(seconds)
        _LOG.info(
            "id=%s %s %s status=%d model=%s size=%s bytes=%d seconds=%.3f",
            *(running.request_id, running.method, running.route, running.status, running.model, running.size),
            *(running.bytes, seconds),
        )


class _Answer:
    """Sends, and notes what is sent; every answer carries the request's id and SECURITY_HEADERS.

    It is counted and logged before its body goes: who has the answer and asks finds it there.
    """

    def __init__(self, send: Send, running: Running, note: Callable[[Running], None]) -> None:
        self._send, self._note, self.running = send, note, running
        self.started = self.noted = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.running.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**SECURITY_HEADERS, "X-Request-ID": self.running.request_id}.items():
                headers[name] = value
        elif not self.noted:
            self.noted = True
            self._note(self.running)
        await self._send(message)


class _Body:
    """Receives a request's body; raises ServiceError where it grows too large or takes too long."""

    def __init__(self, receive: Receive, running: Running, largest: int) -> None:
        self._receive, self._running, self._largest = receive, running, largest
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:  # what is left to receive is that the client goes away
            return await self._receive()
        left = self._running.started + UPLOAD_S - time.perf_counter()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise ServiceError(408, "upload_timeout", f"the body took more than {UPLOAD_S:.0f} s") from None
        self._running.bytes += len(message.get("body", b""))
        if self._running.bytes > self._largest:
            raise _too_large(self._largest)
        self._whole = not message.get("more_body", False)
        return message


async def _refuse(
    error: ServiceError, scope: Scope, headers: Headers, receive: Receive, answer: _Answer, largest: int
) -> None:
    """Answer at once, then let some of the upload pass unread.

    A connection that is closed while its client still sends is reset, and the client never reads the answer.
    """
    drained = False

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal drained
        if message["type"] == "http.response.body" and not drained and "expect" not in headers:
            drained = True
            await answer({**message, "more_body": True})
            await _drain(receive, 2 * largest)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await answer(message)

    await _send_error(error, scope, receive, send, answer.running.request_id)


async def _drain(receive: Receive, most: int) -> None:
    async def pass_by() -> None:
        passed, more = 0, True
        while more and passed <= most:
            message = await receive()
            passed += len(message.get("body", b""))
            more = message.get("more_body", False)

    try:
        await asyncio.wait_for(pass_by(), _DRAIN_S)
    except asyncio.TimeoutError:
        return


async def _send_error(error: ServiceError, scope: Scope, receive: Receive, send: Send, request_id: str = "") -> None:
    response = error_response(error, request_id or scope["state"]["running"].request_id)
    await response(scope, receive, send)


def _route(path: str, routes: frozenset[str]) -> str:
    """A path of the service's; "-" for any other: what somebody typed is not for the log."""
    if path.startswith("/static/"):
        return "/static"
    return path if path in routes else "-"


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _too_large(largest: int) -> ServiceError:
    return ServiceError(413, "too_large", f"the request is larger than {largest / 1e6:g} MB, the most that is accepted")


_INTERNAL = "an error of the service, not of the request; its log has the details under this request_id"
