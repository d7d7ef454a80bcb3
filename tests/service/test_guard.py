"""Access control: tokens, hosts, sizes, rates; request ids, log lines, headers."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from tests.machine_speed import patience
from tests.service.running import RunningService, assert_error, png, wait_until
from tests.service.test_bad_input import request_head
from tests.tiny import picture
from vesselseg.errors import UserError
from vesselseg.service import guard
from vesselseg.service.metrics import Metrics
from vesselseg.service.rate import RateLimit
from vesselseg.service.run import model_names, open_socket
from vesselseg.service.settings import ServiceSettings
from vesselseg.web_pages import SECURITY_HEADERS

GOOD = png(picture(0, 60, 50))
TOKEN = "a-token-of-24-characters"


def test_a_token_is_required(start: Callable[..., Any]) -> None:
    with start(token=TOKEN) as service:
        for value in (None, "", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xff"):
            headers = {} if value is None else {"Authorization": value.encode("latin-1")}
            answer = service.predict(GOOD, headers=headers)
            assert_error(answer, 401, "unauthorized", "Authorization: Bearer")
            assert answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert service.predict(GOOD, headers=right).status_code == 200
        for path in ("/models", "/metrics", "/nothing"):
            assert service.get(path).status_code == 401
            assert service.get(path, headers=right).status_code in (200, 404)
        assert "HTTPBearer" in service.get("/openapi.json").json()["components"]["securitySchemes"]
        for path in ("/", "/health", "/openapi.json"):
            assert service.get(path).status_code == 200
        assert_error(service.post("/labelme", content=b"{"), 401, "unauthorized")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0"}, "no token is set"),
        ({"host": "::"}, "no token is set"),
        ({"host": "0.0.0.0", "token": "short"}, "at least 16"),
        ({"token": ""}, "at least 16"),
        ({"token": "with blanks in its words"}, "without blanks"),
        ({"port": 70_000}, "--port 70000"),
        ({"batch": 0, "queue": 0, "rate": -1.0, "wait_ms": -1.0, "max_megabytes": 0.0}, "--max-megabytes"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"max_megabytes": float("inf"), "rate": float("inf"), "wait_ms": float("inf")}, "--wait-ms inf"),
        ({"keep": Path(__file__)}, "is a file"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        ServiceSettings(**changes)
    assert words in str(caught.value)
    assert all(f"--{name.replace('_', '-')}" in str(caught.value) for name in changes if name not in ("token", "host"))


def test_a_port_in_use_is_named(service: RunningService) -> None:
    with pytest.raises(UserError, match=rf"--port {service.port}: .*choose another"):
        open_socket(ServiceSettings(port=service.port))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost:80:80"])
def test_foreign_names_of_this_machine_are_refused(service: RunningService, host: str) -> None:
    assert_error(service.get("/models", headers={"Host": host}), 403, "foreign_host")


def test_own_names_and_origins(service: RunningService) -> None:
    for host in ("localhost", "127.0.0.1", "[::1]", f"localhost:{service.port}"):
        assert service.get("/models", headers={"Host": host}).status_code == 200
    own = {"Origin": service.url}
    answer = service.predict(GOOD, headers=own)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    for origin in ("http://evil.example", "null", f"http://localhost:{service.port}"):
        assert_error(service.predict(GOOD, headers={"Origin": origin}), 403, "foreign_origin")
    preflight = httpx.options(
        f"{service.url}/predict", headers={**own, "Access-Control-Request-Method": "POST"}, timeout=patience(60)
    )
    assert preflight.status_code == 405


def test_a_large_upload_is_refused_before_it_is_read(service: RunningService) -> None:
    answer = service.predict(GOOD + bytes(1_000_000))
    assert_error(answer, 413, "too_large", "larger than 1 MB")
    with socket.create_connection(("127.0.0.1", service.port), timeout=patience(60)) as connection:
        connection.sendall(request_head(service, 50_000_000))
        assert connection.recv(4000).startswith(b"HTTP/1.1 413")

    def pieces() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(100_000)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert_error(service.post("/predict", content=pieces(), headers=headers), 413, "too_large")
    assert_error(service.post("/labelme", content=bytes(1_100_000)), 413, "too_large")
    assert service.predict(GOOD).status_code == 200


def test_an_upload_that_takes_too_long(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UPLOAD_TIMEOUT_S", 0.3)
    with socket.create_connection(("127.0.0.1", service.port), timeout=patience(30)) as connection:
        connection.sendall(request_head(service, 10_000) + b"--b\r\n")
        assert connection.recv(4000).startswith(b"HTTP/1.1 408")


def test_rate_of_a_client(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "RateLimit", partial(RateLimit, clock=lambda: 0.0))  # not real time
    with start(rate=0.5) as service:
        answers = [service.get("/models") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        assert_error(answers[-1], 429, "rate_limited", "0.5 requests per second")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 4
        assert service.get("/health").status_code == 200
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=elsewhere, timeout=patience(60)) as other:
            claimed = other.get(f"{service.url}/models", headers={"X-Forwarded-For": "127.0.0.1"})
        assert claimed.status_code == 200


def test_loading_the_page_does_not_count_for_the_rate(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "RateLimit", partial(RateLimit, clock=lambda: 0.0))
    with start(rate=0.5) as service:
        files = re.findall(r'(?:src|href)="(static/[^"]+)"', service.get("/").text)
        assert len(files) > 1
        for _ in range(7):
            assert {service.get(f"/{path}").status_code for path in ("", *files, "health")} == {200}
        assert [service.get("/models").status_code for _ in range(6)] == [200] * 5 + [429]
        assert service.get("/static/../models").status_code == service.get("/nothing").status_code == 429


def test_a_bucket_fills_again_and_old_clients_are_forgotten() -> None:
    now = 0.0
    rate = RateLimit(2, lambda: now)
    assert [rate.wait("a") for _ in range(21)] == [0] * 20 + [1]
    now = 1.0
    assert [rate.wait("a") for _ in range(3)] == [0, 0, 1] and rate.wait("b") == 0
    for number in range(30_000):
        now += 0.001
        rate.wait(str(number))
    assert len(rate._buckets) <= 10_001
    assert RateLimit(0).wait("a") == 0


def test_request_ids(service: RunningService) -> None:
    assert service.get("/models", headers={"X-Request-ID": "mine-1.2_3"}).headers["x-request-id"] == "mine-1.2_3"
    made = set()
    for wanted in ("", "../x", "a b", "x" * 65, "-x", "a\tb"):
        given = service.get("/models", headers={"X-Request-ID": wanted}).headers["x-request-id"]
        assert given != wanted and len(given) == 16
        made.add(given)
    assert len(made) == 6


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of requests id-1, id-2 ... only: a line of an earlier test may still arrive."""
    lines = [record.getMessage() for record in caplog.records if record.name == "vesselseg.service"]
    return [line for line in lines if line.startswith("id=id-")]


def test_one_line_per_request_and_nothing_of_the_patient(
    service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vesselseg.service"):
        answer = service.predict(GOOD, "secret-name.png", {"X-Request-ID": "id-1"}, phrase=["secret-vessel", "b"])
        service.predict(b"x", "secret-name.png", {"X-Request-ID": "id-2"}, model="secret-model")
        service.get("/secret-path?secret=query", headers={"X-Request-ID": "id-3"})
        wait_until(lambda: len(lines_of(caplog)) == 3)
    assert answer.status_code == 200
    lines = lines_of(caplog)
    assert len(lines) == 3 and "secret" not in caplog.text
    assert lines[0].startswith("id=id-1 POST /predict status=200 model=tiny size=60x50x2 bytes=")
    assert "GET - status=404" in lines[2]


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("elsewhere", 403)])
def test_a_response_is_counted_and_logged_before_its_body(
    host: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, found = Metrics(), []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            wanted = {"route": "/x", "status": str(status)}
            found.append((metrics.registry.get_sample_value("vesselseg_requests_total", wanted), len(caplog.messages)))

    guarded = guard.Guard(Response("x"), ServiceSettings(), metrics, frozenset({"/x"}))
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"host", host.encode())]}
    with caplog.at_level(logging.INFO, "vesselseg.service"):
        asyncio.run(guarded(scope, receive, send))
    assert found[0] == found[-1] == (1, 1)


def test_every_response_has_the_headers(service: RunningService) -> None:
    for answer in (
        service.get("/models"),
        service.get("/x"),
        service.predict(b""),
        service.get("/", headers={"Host": "x"}),
    ):
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
        assert "server" not in answer.headers and answer.headers["x-request-id"]


def test_names_of_models(tmp_path: Path) -> None:
    assert model_names(["runs/a/hf", "b"]) == ["hf", "b"]
    assert model_names(["runs/a/hf", "runs/b/hf/", "c.pth"]) == ["a/hf", "b/hf", "c.pth"]
    with pytest.raises(UserError, match="twice"):
        model_names(["a", "./a"])


def test_a_connection_before_the_server_runs_waits() -> None:
    """The address is printed before the first connection is accepted."""
    listening = open_socket(ServiceSettings(port=0))
    with listening, socket.create_connection(listening.getsockname(), timeout=patience(60)):
        pass
