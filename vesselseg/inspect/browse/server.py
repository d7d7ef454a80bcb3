"""Server of the browser page: local and read-only; images are addressed by number, never by path."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from vesselseg.errors import ManifestError, UserError
from vesselseg.inspect.browse.catalogue import Catalogue
from vesselseg.inspect.browse.model_views import ModelViews
from vesselseg.inspect.browse.renderer import ImageRenderer
from vesselseg.reports.html import page_file, render
from vesselseg.web_pages import SECURITY_HEADERS, is_local_host

_PAGE = Path(__file__).resolve().parent / "page"
ADDRESS = "127.0.0.1"
# Files of the page and their media types; nothing else is served from disk.
PAGE_FILES = {
    "palette.css": "text/css; charset=utf-8",
    "browse.css": "text/css; charset=utf-8",
    **dict.fromkeys(
        ("browse.js", "browse_list.js", "browse_panels.js", "browse_stage.js"), "text/javascript; charset=utf-8"
    ),
}


@dataclass(frozen=True)
class Response:
    """Body, media type and HTTP status of a response."""

    content: bytes
    media_type: str
    status: int = HTTPStatus.OK


class BrowseServer(ThreadingHTTPServer):
    """Serves one dataset folder on 127.0.0.1. port: 0 for a free one.

    views: the model's views of images; None while they are loading, or an error message.
    """

    daemon_threads = True

    def __init__(self, catalogue: Catalogue, port: int = 0) -> None:
        self.catalogue = catalogue
        self.renderer = ImageRenderer(catalogue)
        self.views: ModelViews | str | None = None
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def start(self) -> threading.Thread:
        """Serve in a daemon thread, which ends with `shutdown` or the program."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        return thread

    def respond(self, path: str) -> Response | None:
        """The response for a URL path, or None. Paths contain image numbers, never file names."""
        for pattern, reply in _ROUTES:
            found = pattern.fullmatch(path)
            if found:
                return reply(self, *found.groups())
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections: fast browsing aborts requests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast(BrowseServer, self.server)
        if not is_local_host(self.headers.get("Host", "")):
            self._send(_text("this page is only available as 127.0.0.1 and localhost", HTTPStatus.FORBIDDEN))
            return
        try:
            found = server.respond(urlsplit(self.path).path)
        except (ManifestError, UserError, ValueError) as error:
            found = _text(str(error), HTTPStatus.UNPROCESSABLE_ENTITY)
        self._send(found or _text("not found", HTTPStatus.NOT_FOUND))

    do_HEAD = do_GET  # noqa: N815

    def _send(self, answer: Response) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.media_type)
        self.send_header("Content-Length", str(len(answer.content)))
        for name, value in SECURITY_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def _text(words: str, status: HTTPStatus) -> Response:
    return Response(words.encode(), "text/plain; charset=utf-8", status)


def _json(value: Any) -> Response:
    return Response(json.dumps(value, ensure_ascii=False).encode(), "application/json")


def _page(server: BrowseServer) -> Response:
    page = render("browse.html.j2", _PAGE, name=server.catalogue.name)
    return Response(page.encode(), "text/html; charset=utf-8")


def _page_file(server: BrowseServer, name: str) -> Response | None:
    return Response(page_file(name, _PAGE), PAGE_FILES[name]) if name in PAGE_FILES else None


def _known(server: BrowseServer, number: str) -> int:
    if int(number) >= len(server.catalogue.entries):
        raise ManifestError(f"no image {number}: the dataset folder has {len(server.catalogue.entries)}")
    return int(number)


def _details(server: BrowseServer, number: str) -> Response:
    return _json(server.catalogue.details(_known(server, number)))


def _image(server: BrowseServer, number: str) -> Response:
    return Response(server.renderer.image(_known(server, number)), "image/png")


def _mask(server: BrowseServer, number: str, observer: str, place: str) -> Response:
    return Response(server.renderer.mask(_known(server, number), int(place), int(observer)), "image/png")


def _thumbnail(server: BrowseServer, number: str, tinted: str | None) -> Response:
    """A thumbnail, or a placeholder for an unreadable image."""
    try:
        return Response(server.renderer.thumbnail(_known(server, number), tinted is not None), "image/jpeg")
    except (ManifestError, ValueError):
        return Response(_BROKEN.encode(), "image/svg+xml")


def _settings(server: BrowseServer) -> Response:
    """Settings of the model's views; "state" is "loading" until they are known."""
    views = server.views
    return _json({"state": "ready", **views.as_json()} if isinstance(views, ModelViews) else _unready(views))


def _unready(views: str | None) -> dict[str, str]:
    return {"state": "loading"} if views is None else {"state": "failed", "problem": views}


def _seen(server: BrowseServer, number: str, epoch: str) -> Response:
    views = server.views  # read once: it may be set at any moment
    if not isinstance(views, ModelViews):
        return _json(_unready(views))
    try:
        seen = server.renderer.model_view(views, _known(server, number), int(epoch))
    except (ManifestError, UserError, ValueError) as error:
        return _json({"state": "failed", "problem": str(error)})
    return _json({"state": "ready", **seen["facts"]})


def _seen_file(server: BrowseServer, number: str, epoch: str, kind: str, place: str | None) -> Response | None:
    views = server.views
    if not isinstance(views, ModelViews):
        return None
    seen = server.renderer.model_view(views, _known(server, number), int(epoch))
    content = seen.get(kind if place is None else f"{kind} {int(place)}")
    return None if content is None else Response(content, "image/png")


_NUMBER = r"([0-9]{1,7})"
_ROUTES: list[tuple[re.Pattern[str], Callable[..., Response | None]]] = [
    (re.compile(pattern), reply)
    for pattern, reply in (
        ("/", _page),
        ("/page/([a-z_]+[.](?:js|css))", _page_file),
        ("/api/dataset", lambda server: _json(server.catalogue.as_json())),
        ("/api/model", _settings),
        (f"/api/images/{_NUMBER}", _details),
        (f"/api/images/{_NUMBER}/seen/{_NUMBER}", _seen),
        (f"/images/{_NUMBER}[.]png", _image),
        (f"/images/{_NUMBER}/mask-{_NUMBER}-{_NUMBER}[.]png", _mask),
        (f"/images/{_NUMBER}/thumb(-tinted)?[.]jpg", _thumbnail),
        (f"/images/{_NUMBER}/seen/{_NUMBER}/(square|tile|mask)(?:-{_NUMBER})?[.]png", _seen_file),
    )
]
_BROKEN = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 56 56"><rect width="56" height="56" fill="#2a2f37"/>'
    '<path d="M18 18l20 20M38 18L18 38" stroke="#ff8a80" stroke-width="3" stroke-linecap="round"/></svg>'
)
