"""A service on a real socket, with helpers to send requests and check responses."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.machine_speed import patience
from vesselseg.inference.predictor import Predictor
from vesselseg.service.app import create_app
from vesselseg.service.run import build_server, open_socket
from vesselseg.service.settings import ServiceSettings


class RunningService:
    """url: its address. get, post: as in httpx."""

    def __init__(self, predictors: dict[str, Predictor], settings: ServiceSettings) -> None:
        self.app = create_app(predictors, settings)
        self.service = self.app.state.service
        self._socket = open_socket(settings)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = build_server(self.app)
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],))
        self._client = httpx.Client(base_url=self.url, timeout=patience(60))

    def __enter__(self) -> RunningService:
        self._thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self.server.should_exit = True
        self._thread.join(patience(60))
        assert not self._thread.is_alive()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._client.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._client.post(path, **options)

    def predict(self, content: bytes, name: str = "a.png", headers: Any = None, **form: Any) -> httpx.Response:
        return self.post("/predict", files={"image": (name, content)}, data=form, headers=headers)

    def metric(self, name: str) -> float:
        """Sum over the labels of one line of /metrics."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith((name + " ", name + "{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


def wait_until(check: Callable[[], Any]) -> None:
    """Poll until check() is true, at most a minute, longer on a loaded machine."""
    limit = patience(60)
    end = time.monotonic() + limit
    while not check():
        if time.monotonic() > end:
            pytest.fail(f"the condition was not met within {limit:.0f} s")
        time.sleep(0.01)


def png(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels_of(encoded: str) -> np.ndarray:
    """Pixels of a base64 PNG."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def assert_error(answer: httpx.Response, status: int, code: str, words: str = "") -> str:
    """Check the common form of errors; returns the message."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "request_id"}
    assert error["code"] == code and words in error["message"], error
    assert error["request_id"] == answer.headers["x-request-id"]
    return error["message"]
